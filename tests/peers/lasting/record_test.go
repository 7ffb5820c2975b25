package lasting_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// One of them has been rotated, so that there is also something superseded.
var made = []string{"x509-CA-A", "x509-CA-B", "JWT-Signer-A", "x509-CA-A"}

// begin a record: a clean start, and keys that it makes.
func begin(t *testing.T, setting *scene.Setting) fingerprints {
	t.Helper()
	p := setting.Ready(t)
	keys := fingerprints{}
	for _, id := range made {
		keys[id] = scene.Generate(t, p, id, keymanagerv1.KeyType_EC_P256).Fingerprint
	}
	scene.Must(t, p.Close())
	return keys
}

// through a start and its trouble, and the clean one after it: the same keys, and nothing less.
func through(t *testing.T, script string) {
	t.Helper()
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	data := strings.Replace(module.In(token.PluginData("")), "destroy_superseded_after = 0\n", "", 1)
	setting := scene.Setting{Data: data, Environ: append(token.Env(), module.Env()...)}
	keys := begin(t, &setting)
	before := token.Labels(t)
	for _, script := range []string{script, ""} {
		module.Play(t, "%s", script)
		p := setting.Ready(t)
		serves(t, p, keys)
		quiet(t, p)
		scene.Must(t, p.Close())
	}
	after := token.Labels(t)
	slices.Sort(before)
	slices.Sort(after)
	if !slices.Equal(before, after) {
		t.Errorf("on the token were %v and are %v", before, after)
	}
}

// quiet about keys: what comes and goes by itself is no loss, and nobody's doing.
func quiet(t *testing.T, p *host.Plugin) {
	t.Helper()
	saysNone(t, p, "key is gone", "two servers share one identity", "destroyed", "cleared away")
}

func saysNone(t *testing.T, p *host.Plugin, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if line, found := p.Logs.Find(text); found {
			t.Errorf("it says: %v", line)
		}
	}
}

func TestAStartWithARecordServesTheSameKeysThroughLastingTrouble(t *testing.T) {
	for _, milliseconds := range lasts() {
		scripts := []string{fmt.Sprintf("C_Sign before CKR_DEVICE_ERROR for %d", milliseconds),
			fmt.Sprintf("C_FindObjects before CKR_DEVICE_ERROR for %d", milliseconds)}
		for _, what := range []string{"hide private", "hide public", "hide both", "unreadable CKR_OBJECT_HANDLE_INVALID both",
			"unreadable CKR_GENERAL_ERROR both", "unreadable CKR_DEVICE_ERROR both"} {
			for _, part := range []string{"", " x509-CA-A"} {
				scripts = append(scripts, fmt.Sprintf("profile %s %d%s", what, milliseconds, part))
			}
		}
		for _, script := range scripts {
			t.Run(script, func(t *testing.T) {
				t.Parallel()
				counted(t)
				through(t, script)
			})
		}
	}
}
