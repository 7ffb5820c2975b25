// Package load keeps callers busy with a plugin, as SPIRE would: some sign, and verify what
// they get with the key they were given; others make one key anew again and again. A call
// that fails is noted, and its caller goes on.
package load

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
)

// Patience is what SPIRE has with one call.
const Patience = 30 * time.Second

// Generate a key.
func Generate(p *host.Plugin, id string, keyType keymanagerv1.KeyType) (*keymanagerv1.PublicKey, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	response, err := p.KeyManager().GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keyType})
	if err != nil {
		return nil, err
	}
	return response.PublicKey, nil
}

// Sign a random SHA-256 digest, and verify what comes back.
func Sign(p *host.Plugin, key *keymanagerv1.PublicKey) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	request := &keymanagerv1.SignDataRequest{KeyId: key.Id, Data: make([]byte, crypto.SHA256.Size()),
		SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm_SHA256}}
	_, _ = rand.Read(request.Data)
	response, err := p.KeyManager().SignData(ctx, request)
	if err != nil {
		return err
	}
	return Verify(key, request, response)
}

// Verify a signature as SPIRE's facade and any relying party would.
func Verify(key *keymanagerv1.PublicKey, request *keymanagerv1.SignDataRequest, response *keymanagerv1.SignDataResponse) error {
	if response.KeyFingerprint != key.Fingerprint {
		return fmt.Errorf("signed by key %s, not %s", response.KeyFingerprint, key.Fingerprint)
	}
	public, err := x509.ParsePKIXPublicKey(key.PkixData)
	if err != nil {
		return err
	}
	if public, ok := public.(*ecdsa.PublicKey); ok {
		if !ecdsa.VerifyASN1(public, request.Data, response.Signature) {
			return errors.New("the ECDSA signature is wrong")
		}
		return nil
	}
	if options := request.GetPssOptions(); options != nil {
		return rsa.VerifyPSS(public.(*rsa.PublicKey), crypto.Hash(options.HashAlgorithm), request.Data,
			response.Signature, &rsa.PSSOptions{SaltLength: int(options.SaltLength)})
	}
	return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.Hash(request.GetHashAlgorithm()), request.Data, response.Signature)
}

// Load is a number of callers.
type Load struct {
	t       testing.TB
	p       *host.Plugin
	pause   time.Duration // of each caller between two calls
	stop    chan struct{}
	group   sync.WaitGroup
	paused  atomic.Bool
	signed  atomic.Int64
	made    atomic.Int64
	callers []*atomic.Int64 // the calls of each, failed ones too
	begun   bool
	before  host.Resources

	mutex   sync.Mutex
	all     map[string]int // failures by what was said
	recent  []error
	current map[string]*keymanagerv1.PublicKey // made last, by id
}

// New load without callers yet.
func New(t testing.TB, p *host.Plugin, pause time.Duration) *Load {
	return &Load{t: t, p: p, pause: pause, stop: make(chan struct{}), all: map[string]int{},
		current: map[string]*keymanagerv1.PublicKey{}}
}

// Start so many callers that sign, each with one of the keys, with pauses that leave the
// processor to those who wait for something else.
func Start(t testing.TB, p *host.Plugin, callers int, keys ...*keymanagerv1.PublicKey) *Load {
	t.Helper()
	return start(t, p, callers, 5*time.Millisecond, keys...)
}

// Rush is Start without pauses: there is a call in flight at every moment.
func Rush(t testing.TB, p *host.Plugin, callers int, keys ...*keymanagerv1.PublicKey) *Load {
	t.Helper()
	return start(t, p, callers, 0, keys...)
}

func start(t testing.TB, p *host.Plugin, callers int, pause time.Duration, keys ...*keymanagerv1.PublicKey) *Load {
	t.Helper()
	l := New(t, p, pause)
	l.Sign(callers, keys...)
	l.Await(50)
	l.Begin()
	return l
}

// Begin to measure: what front and worker have now they may have at the end.
func (l *Load) Begin() {
	l.begun = true
	l.before = l.p.Resources()
}

// Sign with so many callers.
func (l *Load) Sign(callers int, keys ...*keymanagerv1.PublicKey) {
	for i := range callers {
		key := keys[i%len(keys)]
		l.Repeat(func() error { return Sign(l.p, key) })
	}
}

// Rotate one key id as fast as the token makes keys.
func (l *Load) Rotate(id string) {
	l.Repeat(func() error {
		key, err := Generate(l.p, id, keymanagerv1.KeyType_EC_P256)
		if err != nil {
			return fmt.Errorf("rotating %s: %w", id, err)
		}
		l.mutex.Lock()
		l.current[id] = key
		l.mutex.Unlock()
		l.made.Add(1)
		return Sign(l.p, key)
	})
}

// Repeat anything else that ends with a good signature.
func (l *Load) Repeat(call func() error) {
	calls := &atomic.Int64{}
	l.callers = append(l.callers, calls)
	l.group.Go(func() {
		for pause := l.pause; l.wait(pause); calls.Add(1) {
			pause = l.pause
			if l.paused.Load() {
				pause = time.Millisecond
			} else if err := call(); err != nil {
				l.fail(err)
				pause = max(pause, 10*time.Millisecond) // who fails at once would do little else
			} else {
				l.signed.Add(1)
			}
		}
	})
}

func (l *Load) wait(pause time.Duration) bool {
	select {
	case <-l.stop:
		return false
	case <-time.After(pause):
		return true
	}
}

func (l *Load) fail(err error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.all[err.Error()]++
	l.recent = append(l.recent, err)
}

// Pause all callers, or let them go on.
func (l *Load) Pause(paused bool) { l.paused.Store(paused) }

// Signed so far: good signatures.
func (l *Load) Signed() int64 { return l.signed.Load() }

// Made so far: keys.
func (l *Load) Made() int64 { return l.made.Load() }

// Current key of an id that is rotated, nil if none was made yet. Not before End.
func (l *Load) Current(id string) *keymanagerv1.PublicKey { return l.current[id] }

// Await that many more signatures.
func (l *Load) Await(more int64) {
	l.t.Helper()
	until := l.signed.Load() + more
	for patience := time.Now().Add(time.Minute); l.signed.Load() < until; time.Sleep(time.Millisecond) {
		if time.Now().After(patience) {
			l.t.Fatalf("no signature for a minute; failures so far: %v", l.failures())
		}
	}
}

// KillWorkers so many times, with that many signatures before and after each.
func (l *Load) KillWorkers(kills int, signatures int64) {
	l.t.Helper()
	for range kills {
		l.Await(signatures)
		l.p.KillWorkers()
		l.Await(signatures)
	}
}

// Round waits until every caller has begun a call and ended it.
func (l *Load) Round() {
	l.t.Helper()
	if l.paused.Load() {
		return
	}
	for i, calls := range l.callers {
		until := calls.Load() + 2
		for patience := time.Now().Add(70 * time.Second); calls.Load() < until; time.Sleep(time.Millisecond) {
			if time.Now().After(patience) {
				l.t.Fatalf("caller %d waits in vain", i)
			}
		}
	}
}

func (l *Load) failures() map[string]int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	failures := map[string]int{}
	for text, count := range l.all {
		failures[text] = count
	}
	return failures
}

// Failures since the last question.
func (l *Load) Failures() []error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	recent := l.recent
	l.recent = nil
	return recent
}

// patience with a worker that still ends: a sanitizer makes its end slow.
const patience = 30 * time.Second

// End of it; says how it went, and what grew meanwhile.
func (l *Load) End() {
	l.t.Helper()
	close(l.stop)
	l.group.Wait()
	failed := 0
	for _, count := range l.failures() {
		failed += count
	}
	l.t.Logf("%d signatures, %d keys made, %d failed calls, %d workers ended", l.Signed(), l.Made(), failed, len(l.p.Ends()))
	if !l.begun {
		return
	}
	now := l.p.Resources()
	for end := time.Now().Add(patience); now.GrewSince(l.before) && time.Now().Before(end); now = l.p.Resources() {
		time.Sleep(10 * time.Millisecond)
	}
	if now.GrewSince(l.before) {
		l.t.Errorf("before: %v\nnow: %v", l.before, now)
	}
}

// EndWithoutFailures is the target wherever a call can be repeated in its time.
func (l *Load) EndWithoutFailures() {
	l.t.Helper()
	l.End()
	for text, count := range l.failures() {
		l.t.Errorf("%d x %s", count, text)
	}
}

// EndFailing: calls failed, all of them with one of the codes, and some with the text.
func (l *Load) EndFailing(some string, allowed ...codes.Code) {
	l.t.Helper()
	l.End()
	found := false
	for text, count := range l.failures() {
		l.t.Logf("%d x %s", count, text)
		found = found || strings.Contains(text, some)
	}
	for _, err := range l.Failures() {
		if !allows(allowed, status.Code(err)) {
			l.t.Errorf("want only %v: %v", allowed, err)
		}
	}
	if !found {
		l.t.Errorf("no call failed with %q", some)
	}
}

func allows(allowed []codes.Code, code codes.Code) bool {
	for _, one := range allowed {
		if one == code {
			return true
		}
	}
	return false
}
