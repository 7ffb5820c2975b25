// Package lasting_test has trouble that lasts: a token that for some time shows or reads less than
// it has, fails, hangs or crashes its library, at a start of the plugin and in all that it does
// later. Meanwhile no key may be destroyed, none forgotten, and no call may fail that has time left
// when it is over. Single errors are the job of tests/peers/faults. LONG=1 has the long rows too.
package lasting_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// The kept token has keys that are months old: what is young gets more patience.
const kept = "../../data/format-1"

type fingerprints map[string]string

// restore the kept token, and what the server of its identity file has on it.
func restore(t *testing.T) (*softhsm.Token, fingerprints) {
	t.Helper()
	token := softhsm.Restore(t, filepath.Join(kept, "tokens"))
	identity, err := os.ReadFile(filepath.Join(kept, "hsm-id"))
	scene.Must(t, err)
	scene.Must(t, os.WriteFile(filepath.Join(token.Dir, "hsm-id"), identity, 0o600))
	text, err := os.ReadFile(filepath.Join(kept, "keys.json"))
	scene.Must(t, err)
	var servers []struct {
		Identity string       `json:"identity"`
		Keys     fingerprints `json:"keys"`
	}
	scene.Must(t, json.Unmarshal(text, &servers))
	for _, server := range servers {
		if server.Identity == "" {
			return token, server.Keys
		}
	}
	t.Fatal("the kept token has no server with an identity file")
	return nil, nil
}

// serves these keys and no others, and signs with each.
func serves(t *testing.T, p *host.Plugin, wanted fingerprints) {
	t.Helper()
	response, err := p.KeyManager().GetPublicKeys(context.Background(), &keymanagerv1.GetPublicKeysRequest{})
	scene.Must(t, err)
	found := fingerprints{}
	for _, key := range response.PublicKeys {
		found[key.Id] = key.Fingerprint
		if err := load.Sign(p, key); err != nil {
			t.Errorf("%s: %v", key.Id, err)
		}
	}
	if !maps.Equal(found, wanted) {
		t.Errorf("it serves %v; want %v", found, wanted)
	}
}

func startIn(t *testing.T, token *softhsm.Token, module *faulty.Module) *host.Plugin {
	t.Helper()
	p := host.Start(t, host.Options{Type: "KeyManager", Env: append(token.Env(), module.Env()...)})
	scene.Must(t, p.Configure("example.org", module.In(token.PluginData(""))))
	return p
}

func TestAStartThroughLastingTroubleForgetsNoKeyAndDestroysNone(t *testing.T) {
	troubles := []string{"hide", "unreadable CKR_OBJECT_HANDLE_INVALID", "unreadable CKR_KEY_HANDLE_INVALID",
		"unreadable CKR_GENERAL_ERROR", "unreadable CKR_FUNCTION_FAILED", "unreadable CKR_DEVICE_ERROR"}
	for _, trouble := range troubles {
		for _, half := range []string{"private", "public", "both"} {
			for _, milliseconds := range []int{20, 100, 300, 900} {
				script := fmt.Sprintf("profile %s %s %d", trouble, half, milliseconds)
				t.Run(script, func(t *testing.T) {
					t.Parallel()
					token, keys := restore(t)
					before := token.Labels(t)
					module := faulty.Wrap(t, token)
					module.Play(t, "%s", script)
					p := startIn(t, token, module)
					serves(t, p, keys)
					scene.Must(t, p.Close())
					module.Play(t, "")
					p = startIn(t, token, module)
					serves(t, p, keys)
					scene.Must(t, p.Close())
					if after := token.Labels(t); len(after) != len(before) {
						t.Errorf("the token had %d objects and has %d: %v", len(before), len(after), after)
					}
				})
			}
		}
	}
}

// Trouble that ends in the middle of a look shows one key whole and none of the others.
func TestAStartThatIsShownSomeKeysAloneForAMomentForgetsNoOther(t *testing.T) {
	for _, part := range []string{"x509", "JWT"} {
		for _, milliseconds := range []int{100, 600} {
			script := fmt.Sprintf("profile hide both %d %s", milliseconds, part)
			t.Run(script, func(t *testing.T) {
				t.Parallel()
				token, keys := restore(t)
				module := faulty.Wrap(t, token)
				module.Play(t, "%s", script)
				serves(t, startIn(t, token, module), keys)
			})
		}
	}
}

// A start that is not shown a key for longer than it waits forgets it, and SPIRE makes another. The
// key that was there must be there still when the token shows it again.
func TestAKeyThatAStartDidNotSeeIsNotDestroyedByTheNext(t *testing.T) {
	t.Parallel()
	const id = "x509-CA-A"
	token, keys := restore(t)
	if keys[id] == "" {
		t.Fatalf("the kept token has no %s", id)
	}
	data := strings.Replace(token.PluginData(""), "destroy_superseded_after = 0\n", "", 1)
	before := token.Labels(t)
	module := faulty.Wrap(t, token)
	module.Play(t, "profile hide private 6000 %s", id)
	options := host.Options{Type: "KeyManager", Env: append(token.Env(), module.Env()...)}
	p := host.Start(t, options)
	scene.Must(t, p.Configure("example.org", module.In(data)))
	made, err := load.Generate(p, id, keymanagerv1.KeyType_EC_P256)
	scene.Must(t, err)
	scene.Must(t, p.Close())
	module.Play(t, "")
	p = host.Start(t, options)
	scene.Must(t, p.Configure("example.org", module.In(data)))
	scene.Must(t, load.Sign(p, made))
	another, err := load.Generate(p, id, keymanagerv1.KeyType_EC_P256)
	scene.Must(t, err)
	p.Logs.Wait(t, "key superseded")
	scene.Must(t, load.Sign(p, another))
	scene.Must(t, p.Close())
	if after := token.Labels(t); len(after) != len(before)+2 {
		t.Errorf("%d private keys, want those of before and two new ones: %v", len(after), after)
	}
}

// Trouble that may pass is waited for as long as an absent token is.
func TestAStartWaitsForAKeyThatCannotSignForAWhile(t *testing.T) {
	for _, script := range []string{
		"C_Sign before CKR_DEVICE_ERROR for 2000",
		"C_SignInit before CKR_GENERAL_ERROR for 2000",
		"C_Sign 1 before segv times 5 shared",
		"C_FindObjects before CKR_DEVICE_ERROR for 2000",
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			token, keys := restore(t)
			module := faulty.Wrap(t, token)
			module.Play(t, "%s", script)
			p := startIn(t, token, module)
			serves(t, p, keys)
		})
	}
}

// A person at 3 a.m. has this line alone.
func TestAStartThatWaitsForItsKeysSaysSoWhileItDoes(t *testing.T) {
	const line = "waiting for the keys on the token"
	for script, reason := range map[string]string{
		"profile unreadable CKR_DEVICE_ERROR both 5000":  "CKR_DEVICE_ERROR",
		"profile unreadable CKR_GENERAL_ERROR both 5000": "CKR_GENERAL_ERROR",
		"C_FindObjects before CKR_DEVICE_ERROR for 5000": "CKR_DEVICE_ERROR",
	} {
		for _, recorded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, recorded %v", script, recorded), func(t *testing.T) {
				t.Parallel()
				token, keys := restore(t)
				module := faulty.Wrap(t, token)
				module.Play(t, "")
				if recorded {
					scene.Must(t, startIn(t, token, module).Close())
				}
				module.Play(t, "%s", script)
				p := startIn(t, token, module)
				var said []string
				for _, l := range p.Logs.Lines() {
					if l.Message == line {
						said = append(said, l.Fields["error"])
					}
				}
				if len(said) == 0 || !strings.Contains(strings.Join(said, "\n"), reason) {
					t.Errorf("%q is said with %q; want %q", line, said, reason)
				}
				serves(t, p, keys)
			})
		}
	}
}
