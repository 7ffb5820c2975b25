package lasting_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// Somebody makes another token of that name: a running server goes on with its own.
func TestASecondTokenOfThatLabelCostsARunningServerNoCall(t *testing.T) {
	t.Parallel()
	token := softhsm.New(t)
	s := scene.Setting{Data: token.PluginData(""), Environ: token.Env()}
	p := s.Ready(t)
	l := load.Start(t, p, 4, scene.Generate(t, p, "JWT-Signer-A", keymanagerv1.KeyType_EC_P256))
	token.Init(t, "spire")
	l.KillWorkers(3, 50)
	l.EndWithoutFailures()
	refused := host.Start(t, host.Options{Type: "KeyManager", Env: token.Env()})
	if err := refused.Configure(scene.Domain, token.PluginData("")); err == nil {
		t.Error("a server that never had one of them open takes one at random")
	}
}

// An upgrade takes the library away and puts it back. A worker that dies meanwhile cannot be replaced
// for so long, and says so as of a wrong setting; calls wait all the same.
func TestALibraryThatIsAwayForAWhileCostsNoCall(t *testing.T) {
	t.Parallel()
	counted(t)
	token := softhsm.New(t)
	module := filepath.Join(token.Dir, "module.so")
	library, err := os.ReadFile(softhsm.Module())
	scene.Must(t, err)
	scene.Must(t, os.WriteFile(module, library, 0o755))
	s := scene.Setting{Data: strings.Replace(token.PluginData(""), softhsm.Module(), module, 1), Environ: token.Env()}
	p, key, l := s.Busy(t, 4)
	scene.Must(t, os.Rename(module, module+".old"))
	p.KillWorkers()
	p.Logs.Wait(t, "PKCS#11 worker ended")
	time.Sleep(8 * time.Second) // how long it is away
	scene.Must(t, os.Rename(module+".old", module))
	l.Await(20)
	scene.Sign(t, p, key)
	l.EndWithoutFailures()
}
