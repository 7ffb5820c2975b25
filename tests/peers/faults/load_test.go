package faults_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
)

// SPIRE gives each call so long.
const spiresPatience = 30 * time.Second

func generate(p *host.Plugin, id string) (*keymanagerv1.PublicKey, error) {
	ctx, cancel := context.WithTimeout(context.Background(), spiresPatience)
	defer cancel()
	response, err := p.KeyManager().GenerateKey(ctx,
		&keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keymanagerv1.KeyType_EC_P256})
	if err != nil {
		return nil, err
	}
	return response.PublicKey, nil
}

// sign a random digest and verify what comes back.
func sign(p *host.Plugin, key *keymanagerv1.PublicKey) error {
	ctx, cancel := context.WithTimeout(context.Background(), spiresPatience)
	defer cancel()
	digest := make([]byte, 32)
	_, _ = rand.Read(digest)
	response, err := p.KeyManager().SignData(ctx, &keymanagerv1.SignDataRequest{KeyId: key.Id, Data: digest,
		SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm_SHA256}})
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(key.PkixData)
	if err != nil {
		return err
	}
	if response.KeyFingerprint != key.Fingerprint || !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest, response.Signature) {
		return fmt.Errorf("wrong signature for key %s", key.Id)
	}
	return nil
}

// load keeps callers busy: some sign, one makes the same key anew again and again and signs
// with it. A call that fails is noted, and the caller goes on.
type load struct {
	p       *host.Plugin
	stop    chan struct{}
	group   sync.WaitGroup
	paused  atomic.Bool
	calls   []atomic.Int64 // by caller, failed ones too
	signed  atomic.Int64
	made    atomic.Int64
	mutex   sync.Mutex
	failed  []error
	current *keymanagerv1.PublicKey // the last one made by the rotating caller
}

const rotatingID = "rotating"

func startLoad(p *host.Plugin, keys []*keymanagerv1.PublicKey, callers int, rotate bool) *load {
	l := &load{p: p, stop: make(chan struct{}), calls: make([]atomic.Int64, callers+1)}
	for i := range callers {
		key := keys[i%len(keys)]
		l.group.Go(func() { l.repeat(i, 12*time.Millisecond, func() error { return sign(p, key) }) })
	}
	if rotate {
		l.group.Go(func() { l.repeat(callers, 25*time.Millisecond, l.rotate) })
	} else {
		l.calls = l.calls[:callers]
	}
	return l
}

func (l *load) rotate() error {
	key, err := generate(l.p, rotatingID)
	if err != nil {
		return err
	}
	l.current = key
	l.made.Add(1)
	return sign(l.p, key)
}

func (l *load) repeat(caller int, pause time.Duration, call func() error) {
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(pause):
		}
		if l.paused.Load() {
			continue
		}
		if err := call(); err != nil {
			l.mutex.Lock()
			l.failed = append(l.failed, err)
			l.mutex.Unlock()
		} else {
			l.signed.Add(1)
		}
		l.calls[caller].Add(1)
	}
}

func (l *load) end() {
	close(l.stop)
	l.group.Wait()
}

// failures since the last question.
func (l *load) failures() []error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	failed := l.failed
	l.failed = nil
	return failed
}

// round waits until every caller has begun a call and ended it.
func (l *load) round(t testing.TB) {
	t.Helper()
	if l.paused.Load() {
		return
	}
	for i := range l.calls {
		until := l.calls[i].Load() + 2
		await(t, 70*time.Second, fmt.Sprintf("caller %d", i), func() bool { return l.calls[i].Load() >= until })
	}
}

func await(t testing.TB, patience time.Duration, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}
