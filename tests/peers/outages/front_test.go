package outages

import (
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// hangingInSign: a plugin whose library hangs in a signature for ever, and that worker.
func hangingInSign(t *testing.T, b *bench) (p *host.Plugin, worker int) {
	t.Helper()
	p = b.Ready(t)
	key := scene.Generate(t, p, "x509-CA-A", p256)
	b.module.Play(t, "C_Sign before hang shared")
	go func() { _ = load.Sign(p, key) }()
	scene.Eventually(t, "it hangs in C_Sign", func() bool { return len(b.module.FiredIn(t, "C_Sign")) > 0 })
	return p, p.Workers()[0]
}

// It holds the identity lock for as long as it lives.
func TestAWorkerThatHangsEndsWithItsFrontAndTheNextStartFindsEveryKey(t *testing.T) {
	t.Parallel()
	faults(t, 2)
	b := newFaulty(t, "operation_timeout = \"60s\"\n", "")
	p, worker := hangingInSign(t, b)
	before := served(t, p)
	p.Kill()
	next := b.Start(t)
	b.module.Play(t, "")
	scene.Must(t, next.Configure(domain, b.Data))
	if !host.Gone(worker) {
		t.Errorf("worker %d is still there", worker)
	}
	found := served(t, next)
	for id, key := range before {
		if found[id] == nil || found[id].Fingerprint != key.Fingerprint {
			t.Errorf("%s: %v before, %v after", id, key, found[id])
		}
		scene.Sign(t, next, key)
	}
}
