package keymanager_test

import (
	"context"
	"crypto"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/load"
	"spire-hsm/peers/softhsm"
)

func TestKillingTheWorkerUnderLoadCostsNoCallAndLosesNoKey(t *testing.T) {
	const kills = 15
	token := softhsm.New(t)
	p := ready(t, token)
	key := generate(t, p, "JWT-Signer-A", p256)
	l := load.Start(t, p, 4, key)
	rotated := []string{"x509-CA-A", "x509-CA-B"}
	for _, id := range rotated {
		l.Rotate(id)
	}
	for range kills {
		until := l.Made() + 5
		for l.Made() < until && !t.Failed() {
			l.Await(1)
		}
		p.KillWorkers()
		l.Await(20)
	}
	l.Round()
	l.EndWithoutFailures()
	if deaths := p.Deaths(); len(deaths) != kills {
		t.Errorf("%d workers died, %d were killed", len(deaths), kills)
	}
	last := []*keymanagerv1.PublicKey{key}
	for _, id := range rotated {
		last = append(last, l.Current(id))
	}
	for range 2 {
		for _, key := range last {
			if err := load.Sign(p, key); err != nil {
				t.Errorf("key %s: %v", key.Id, err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p = ready(t, token)
	}
	named := func() []string { // SoftHSM leaves objects without a name, killed in a write
		return slices.DeleteFunc(token.Labels(t), func(label string) bool { return label == "" })
	}
	for patience := time.Now().Add(30 * time.Second); len(named()) != len(last); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatalf("on the token: %v; want one key for each of %d ids", named(), len(last))
		}
	}
}

func TestShutdownWithSignaturesInFlightAnswersEveryCall(t *testing.T) {
	const callers, rounds = 24, 3
	for range rounds {
		p := ready(t, softhsm.New(t))
		key := generate(t, p, "x509-CA-A", p256)
		client := p.KeyManager()
		var group sync.WaitGroup
		var signed, givenUp atomic.Int64
		for i := range callers {
			group.Go(func() {
				for {
					call, cancel := ctx, func() {}
					if i == 0 { // leaves before it is answered
						call, cancel = context.WithTimeout(ctx, time.Millisecond)
					}
					_, err := client.SignData(call, plain(key.Id, crypto.SHA256, digest(crypto.SHA256)))
					cancel()
					switch code := status.Code(err); {
					case err == nil:
						signed.Add(1)
					case i == 0 && code == codes.DeadlineExceeded:
						givenUp.Add(1)
					case code == codes.Unavailable || code == codes.Canceled:
						return
					default:
						t.Errorf("signature failed: %v", err)
						return
					}
				}
			})
		}
		for signed.Load() < 300 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		group.Wait()
		t.Logf("%d signatures, %d calls given up by their callers", signed.Load(), givenUp.Load())
	}
}

func TestReconfigureUnderLoadCostsNoSignature(t *testing.T) {
	token := softhsm.New(t)
	p := ready(t, token)
	key := generate(t, p, "x509-CA-A", p256)
	l := load.Start(t, p, 8, key)
	for i := range 5 {
		l.Await(50)
		configure(t, p, token.PluginData(fmt.Sprintf("max_sessions = %d", i+2)))
		expect(t, p.Configure("example.org", token.PluginData(`tokn = "x"`)), codes.InvalidArgument, `tokn`)
		wrong := strings.Replace(token.PluginData("startup_wait = \"0s\""), "token=spire", "token=absent", 1)
		expect(t, p.Configure("example.org", wrong), codes.Unavailable, "absent")
	}
	l.Await(50)
	l.EndWithoutFailures()
	generate(t, p, "x509-CA-B", p256)
	for patience := time.Now().Add(30 * time.Second); len(p.Workers()) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatalf("workers left behind: %v", p.Workers())
		}
	}
}

func TestAnAbsentTokenIsWaitedForAndAWrongPINIsNot(t *testing.T) {
	token := softhsm.New(t)
	away := token.Tokens + ".away"
	if err := os.Rename(token.Tokens, away); err != nil {
		t.Fatal(err)
	}
	p := start(t, token)
	done := make(chan error, 1)
	go func() { done <- p.Configure("example.org", token.PluginData("")) }()
	select {
	case err := <-done:
		t.Fatalf("Configure did not wait: %v", err)
	case <-time.After(700 * time.Millisecond): // the token must come late: nothing to wait for here
	}
	if err := os.Rename(away, token.Tokens); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Configure after the token came: %v", err)
	}

	q := start(t, token)
	if err := os.WriteFile(token.PINFile, []byte("9999\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := strings.Replace(token.PluginData(""), "hsm-id", "other-id", 1)
	err := q.Configure("example.org", data)
	expect(t, err, codes.FailedPrecondition, "PIN")
	if err != nil && strings.Contains(err.Error(), "9999") {
		t.Errorf("the PIN is in the error: %v", err)
	}
}
