package outages

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// SPIRE's SIGUSR1 ends in Configure; here it is called under load, as often as it takes.

func TestReconfiguringUnderLoadCostsNoCall(t *testing.T) {
	t.Parallel()
	rounds := either(5, 50)
	faults(t, 5*rounds)
	b := newBench(t, "")
	p, key, l := b.Busy(t, 8)
	l.Rotate("JWT-Signer-A")
	for i := range rounds {
		scene.Must(t, p.Configure(domain, b.Data+fmt.Sprintf("max_sessions = %d\n", 2+i%6)))
		l.Await(20)
		for _, bad := range []struct {
			data string
			code codes.Code
			text string
		}{
			{b.Data + "tokn = \"x\"\n", codes.InvalidArgument, "tokn"},
			{strings.Replace(b.Data, "token=spire", "token=absent", 1) + "startup_wait = \"0s\"\n", codes.Unavailable, "absent"},
			{strings.Replace(b.Data, "libsofthsm2.so", "libabsent.so", 1) + "startup_wait = \"0s\"\n", codes.FailedPrecondition, "libabsent.so"},
			{strings.Replace(b.Data, "pin_file", "key_identifier_value = \"x\"\npin_file", 1), codes.InvalidArgument, "key_identifier"},
		} {
			expect(t, p.Configure(domain, bad.data), bad.code, bad.text)
			l.Await(20)
		}
	}
	l.EndWithoutFailures()
	scene.Eventually(t, "one worker is left", func() bool { return len(p.Workers()) == 1 })
	if found := served(t, p); len(found) != 2 || found[key.Id].Fingerprint != key.Fingerprint {
		t.Errorf("served: %v", found)
	}
	b.expectPairs(t, 2)
}

func TestReconfiguringWithAnotherPINUnderLoadCostsNoCall(t *testing.T) {
	t.Parallel()
	faults(t, 3)
	b := newBench(t, "")
	p, _, l := b.Busy(t, 8)
	b.Tool(t, "--change-pin", "--new-pin", "4321")
	b.PIN = "4321"
	expect(t, p.Configure(domain, b.Data), codes.FailedPrecondition, "PIN") // the file has the old one
	l.Await(50)
	other := b.PINFile + ".other"
	scene.Write(t, other, b.PIN+"\n")
	data := strings.Replace(b.Data, b.PINFile, other, 1)
	scene.Must(t, p.Configure(domain, data))
	l.Await(50)
	p.KillWorkers() // the new PIN is the one that is used from now on
	l.Await(50)
	scene.Must(t, os.WriteFile(b.PINFile, []byte("9999\n"), 0o600))
	expect(t, p.Configure(domain, b.Data), codes.FailedPrecondition, "PIN")
	l.Await(50)
	l.EndWithoutFailures()
	scene.Generate(t, p, "x509-CA-B", p256)
}

// A cluster of HSMs shows a new key to a new worker late, and SPIRE would drop the CA of a key
// that is not served any more.
func TestReconfiguringOnALaggingTokenLosesNoKey(t *testing.T) {
	t.Parallel()
	faults(t, 2)
	b := newFaulty(t, "destroy_superseded = false\n", "")
	p := b.Ready(t)
	scene.Generate(t, p, "x509-CA-A", p256) // is seen all the time, and may not be served again
	b.module.Play(t, "profile apart 4000\n")
	key, l := scene.Work(t, p, 4)
	scene.Must(t, p.Configure(domain, b.Data+"max_sessions = 3\n"))
	scene.Sign(t, p, key)
	l.Await(50)

	b.module.Play(t, "profile apart 600000\n")
	late := scene.Generate(t, p, "JWT-Signer-A", p256)
	expect(t, p.Configure(domain, b.Data), codes.Unavailable, `key "JWT-Signer-A"`, "is served, but token", "restart the server")
	scene.Sign(t, p, key, late)
	made := scene.Generate(t, p, "x509-CA-B", p256) // it goes on as if nothing had been asked
	b.module.Play(t, "")
	scene.Must(t, p.Configure(domain, b.Data))
	scene.Sign(t, p, key, late, made)
	l.EndWithoutFailures()
	b.expectPairs(t, 4)
}

// Each token keeps its own keys, in a record of its own: going over to another one and back loses
// none. In the record of this one the keys of the other are missing, so going over is refused.
func TestReconfiguringToAnotherTokenAndBackUnderLoadLosesNoKey(t *testing.T) {
	t.Parallel()
	rounds := either(3, 30)
	faults(t, 2*rounds)
	b := newBench(t, "")
	b.Init(t, "other")
	other := strings.Replace(b.Data, "token=spire", "token=other", 1)
	p := b.Ready(t)
	here := scene.Generate(t, p, "x509-CA-A", p256)
	expect(t, p.Configure(domain, other), codes.Unavailable, "the old configuration goes on", `key "x509-CA-A"`)
	scene.Sign(t, p, here)
	other += fmt.Sprintf("record_file = %q\n", filepath.Join(b.Dir, "other.keys"))
	scene.Must(t, p.Configure(domain, other))
	if found := served(t, p); len(found) != 0 {
		t.Errorf("an empty token serves %v", found)
	}
	p.Logs.Wait(t, "key is not served any more")
	err := load.Sign(p, here)
	expect(t, err, codes.NotFound, `key "x509-CA-A" not found`)
	there := scene.Generate(t, p, "x509-CA-A", p256)
	for range rounds {
		for _, side := range []struct {
			data, fingerprint string
		}{{b.Data, here.Fingerprint}, {other, there.Fingerprint}} {
			l := startEither(t, p, here.Fingerprint, there.Fingerprint)
			scene.Must(t, p.Configure(domain, side.data))
			l.Await(20)
			if found := served(t, p); len(found) != 1 || found["x509-CA-A"].Fingerprint != side.fingerprint {
				t.Errorf("served: %v", found)
			}
			l.EndWithoutFailures()
		}
	}
	scene.Must(t, p.Configure(domain, b.Data))
	scene.Sign(t, p, here)
	scene.Must(t, p.Configure(domain, other))
	scene.Sign(t, p, there)
}

// startEither is a load whose signatures may be of either key.
func startEither(t testing.TB, p *host.Plugin, fingerprints ...string) *load.Load {
	t.Helper()
	l := load.New(t, p, 0)
	for range 4 {
		l.Repeat(func() error {
			key := served(t, p)["x509-CA-A"]
			if key == nil {
				return errors.New("no key is served")
			}
			// between the question and the signature the token may have become the other one
			err := load.Sign(p, key)
			if err != nil && !strings.Contains(err.Error(), "signed by key "+fingerprints[0]) &&
				!strings.Contains(err.Error(), "signed by key "+fingerprints[1]) {
				return err
			}
			return nil
		})
	}
	l.Await(20)
	return l
}
