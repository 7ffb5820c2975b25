package keymanager_test

import (
	"crypto"
	"os"
	"testing"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/faulty"
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
		p.AwaitCounter(t, "pkcs11.worker_ended{how=died}", 1)
		p.AwaitCounter(t, "pkcs11.worker_ended{how=hung}", 0)
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

func TestTheHostsTelemetryIsToldOfSignaturesByKeyAndCode(t *testing.T) {
	p := ready(t, softhsm.New(t))
	key := generate(t, p, "x509-CA-A", p256)
	for range 3 {
		sign(t, p, key, plain(key.Id, crypto.SHA256, digest(crypto.SHA256)))
	}
	_, err := p.KeyManager().SignData(ctx, plain("nobody's", crypto.SHA256, digest(crypto.SHA256)))
	expect(t, err, codes.NotFound, "nobody's")
	p.AwaitCounter(t, "pkcs11.signatures{key_id=x509-CA-A,code=OK}", 3)
	p.AwaitCounter(t, "pkcs11.signatures{key_id=,code=NOT_FOUND}", 1)
	p.AwaitCounter(t, "pkcs11.signatures_failed{}", 1)
	p.AwaitCounter(t, "pkcs11.calls{call=sign,part=all}", 3)
	p.AwaitCounter(t, "pkcs11.calls{call=generate,part=token}", 1)
	for _, part := range []string{"all", "wait", "token"} {
		p.AwaitFigure(t, "pkcs11.call_elapsed_time{call=sign,part="+part+"}", func(ms float32) bool { return ms > 0 })
	}
}

func TestTheHostsTelemetryIsToldWhatIsAskedAgain(t *testing.T) {
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	module.Play(t, "C_Sign 5 before segv once shared")
	p := host.Start(t, host.Options{Type: "KeyManager", Env: append(token.Env(), module.Env()...)})
	configure(t, p, module.In(token.PluginData("")))
	key := generate(t, p, "x509-CA-A", p256)
	for range 8 {
		sign(t, p, key, plain(key.Id, crypto.SHA256, digest(crypto.SHA256)))
	}
	p.AwaitCounter(t, "pkcs11.asked_again{after=worker}", 1)
	p.AwaitCounter(t, "pkcs11.worker_ended{how=died}", 1)
	p.AwaitCounter(t, "pkcs11.signatures{key_id=x509-CA-A,code=OK}", 8)
	p.AwaitCounter(t, "pkcs11.signatures_failed{}", 0)
}

func TestTheHostsTelemetryIsToldHowTheTokenIs(t *testing.T) {
	token := softhsm.New(t)
	p := ready(t, token)
	_ = generate(t, p, "x509-CA-A", p256)
	is := func(value float32) func(float32) bool { return func(got float32) bool { return got == value } }
	p.AwaitFigure(t, "pkcs11.token_up{}", is(1))
	p.AwaitFigure(t, "pkcs11.token_away_seconds{}", is(0))
	p.AwaitFigure(t, "pkcs11.sessions_limit{}", is(4))
	p.AwaitFigure(t, "pkcs11.keys{state=served}", is(1))
	p.AwaitFigure(t, "pkcs11.objects{whose=others}", is(0))
	p.AwaitFigure(t, "pkcs11.key_age_seconds{key_id=x509-CA-A}", func(age float32) bool { return age >= 0 && age < 60 })
	away := token.Tokens + ".away"
	if err := os.Rename(token.Tokens, away); err != nil {
		t.Fatal(err)
	}
	p.KillWorkers()
	p.AwaitFigure(t, "pkcs11.token_up{}", is(0))
	p.AwaitFigure(t, "pkcs11.token_away_seconds{}", func(away float32) bool { return away > 0 })
	if err := os.Rename(away, token.Tokens); err != nil {
		t.Fatal(err)
	}
	p.AwaitFigure(t, "pkcs11.token_up{}", is(1))
	p.AwaitFigure(t, "pkcs11.token_away_seconds{}", is(0))
}
