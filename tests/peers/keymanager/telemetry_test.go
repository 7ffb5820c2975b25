package keymanager_test

import (
	"os"
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/softhsm"
)

func TestTheHostsTelemetryHearsOfKeysAndWorkers(t *testing.T) {
	token := softhsm.New(t)
	for _, agent := range []bool{false, true} {
		p := host.Start(t, host.Options{Type: "KeyManager", Env: token.Env(), Agent: agent})
		configure(t, p, token.PluginData(""))
		if agent {
			continue // the same service; only that it is offered has to do no harm
		}
		for range 3 {
			generate(t, p, "x509-CA-A", p256)
		}
		p.AwaitCounter(t, "pkcs11.key_made", 3)
		p.AwaitCounter(t, "pkcs11.key_destroyed", 2)
		p.KillWorkers()
		p.AwaitCounter(t, "pkcs11.worker_ended", 1)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTelemetryFindsAHostWhoseSocketsPathIsNoPlainURI(t *testing.T) {
	folder, err := os.MkdirTemp("", "100%41?") // a test's own is too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	token := softhsm.New(t)
	t.Setenv("TMPDIR", folder) // the host's own socket is there, too
	p := ready(t, token)
	generate(t, p, "x509-CA-A", p256)
	p.AwaitCounter(t, "pkcs11.key_made", 1)
}

func TestTelemetryThatTheHostDidNotTakeIsToldAgain(t *testing.T) {
	p := ready(t, softhsm.New(t))
	p.RefuseCounters(2)
	generate(t, p, "x509-CA-A", p256)
	p.AwaitCounter(t, "pkcs11.key_made", 1)
}
