package lasting_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// service is how the calls for one key were served for some time.
type service struct {
	mutex  sync.Mutex
	took   []time.Duration
	failed []error
}

func (s *service) add(took time.Duration, err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if err != nil {
		s.failed = append(s.failed, err)
	} else {
		s.took = append(s.took, took)
	}
}

// percentile of the calls that succeeded; 100 is the slowest.
func (s *service) percentile(n int) time.Duration {
	slices.Sort(s.took)
	return s.took[min(len(s.took)*n/100, len(s.took)-1)]
}

// serve so many callers with a key until the context ends; each waits for its last call.
func (p *troubled) serve(ctx context.Context, callers int, key *keymanagerv1.PublicKey) *service {
	var s service
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				err := load.Sign(p.Plugin, key)
				s.add(time.Since(start), err)
				time.Sleep(5 * time.Millisecond) // what a caller does between two calls
			}
		})
	}
	group.Wait()
	return &s
}

func (s *service) compared(alone *service) string {
	text := fmt.Sprintf("%d calls", len(s.took))
	for _, n := range []int{50, 99, 100} {
		text += fmt.Sprintf(", p%d %.2f ms (x %.1f)", n, float64(s.percentile(n).Microseconds())/1000,
			float64(s.percentile(n))/float64(alone.percentile(n)))
	}
	return text
}

// during so long, four callers.
func (p *troubled) during(lasting time.Duration, key *keymanagerv1.PublicKey) *service {
	ctx, end := context.WithTimeout(context.Background(), lasting)
	defer end()
	return p.serve(ctx, 4, key)
}

// beside a key of which every signature comes to this, once that is known.
func (p *troubled) beside(t *testing.T, trouble string, bad, healthy *keymanagerv1.PublicKey, lasting time.Duration) *service {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	var group sync.WaitGroup
	ended := len(p.Ends())
	p.module.Play(t, "C_Sign before %s on %s", trouble, bad.Id)
	group.Go(func() { p.serve(ctx, 4, bad) })
	scene.Eventually(t, "it is in trouble", func() bool {
		return len(p.module.Fired(t)) > 0 && (trouble == "CKR_DEVICE_ERROR" || len(p.Ends()) > ended)
	})
	s := p.during(lasting, healthy)
	end()
	p.module.Play(t, "")
	group.Wait()
	return s
}

// A key that fails, hangs or crashes costs its own callers, not another key's. A worker that ends
// takes with it what is in flight, once in seconds: too seldom for the long run's 99th percentile.
func TestAHealthyKeyIsServedBesideOneInTrouble(t *testing.T) {
	lasting, ratio := 2*time.Second, 0
	if long {
		lasting, ratio = 20*time.Second, 10
	}
	p := newTroubled(t, "operation_timeout = \"1s\"\n")
	keys := p.keys(t)
	healthy := keys[1]
	for i, trouble := range []string{"CKR_DEVICE_ERROR", "hang", "segv"} {
		t.Run(trouble, func(t *testing.T) {
			counted(t)
			alone := p.during(lasting, healthy) // each time, as the machine may be busier by now
			t.Logf("a healthy key alone: %s", alone.compared(alone))
			bad := scene.Generate(t, p.Plugin, fmt.Sprintf("bad-%d", i), keymanagerv1.KeyType_EC_P256)
			s := p.beside(t, trouble, bad, healthy, lasting)
			t.Logf("beside one with %s: %s", trouble, s.compared(alone))
			for _, err := range slices.Concat(alone.failed, s.failed) {
				t.Error(err)
			}
			if len(s.took) < len(alone.took)/4 {
				t.Errorf("%d calls, and %d alone", len(s.took), len(alone.took))
			}
			if ratio > 0 && s.percentile(99) > time.Duration(ratio)*alone.percentile(99) {
				t.Errorf("p99 is more than %d times what it is alone", ratio)
			}
		})
	}
	p.bounded(t)
}
