package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
)

type operation struct {
	name    string
	keyType keymanagerv1.KeyType
	hash    keymanagerv1.HashAlgorithm
	digest  int
	share   float64 // of the bare rate at 32 callers, to reach
}

var operations = []operation{
	{"ES256", keymanagerv1.KeyType_EC_P256, keymanagerv1.HashAlgorithm_SHA256, 32, 0.53},
	{"ES384", keymanagerv1.KeyType_EC_P384, keymanagerv1.HashAlgorithm_SHA384, 48, 0.85},
	{"RS256", keymanagerv1.KeyType_RSA_2048, keymanagerv1.HashAlgorithm_SHA256, 32, 0.85},
}

var callerCounts = []int{1, 8, 32}

// result of one round, or of several.
type result struct {
	rate     float64
	p50, p99 float64 // microseconds
	spent    []spent // a call, by the processes that were looked at, and last by this program
}

// others: what share of the machine somebody else had, round by round.
var others []float64

// signFor lets `callers` sign as fast as they can.
func signFor(p *host.Plugin, op operation, callers int, duration time.Duration) (result, error) {
	request := &keymanagerv1.SignDataRequest{
		KeyId: op.name + "-0", Data: make([]byte, op.digest),
		SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: op.hash},
	}
	client := p.KeyManager()
	call := func() error {
		_, err := client.SignData(ctx, request)
		return err
	}
	signed, err := callFor(call, family(p.PID()), callers, duration)
	if err != nil {
		return result{}, fmt.Errorf("SignData: %w", err)
	}
	return signed, nil
}

// callFor lets `callers` call as fast as they can, after a short start that does not count. It looks
// at what the processes `who` and this one spend on that.
func callFor(call func() error, who []int, callers int, duration time.Duration) (result, error) {
	samples := make([][]time.Duration, callers)
	var counting, stopped atomic.Bool
	var failure atomic.Pointer[error]
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			for !stopped.Load() {
				begun := time.Now()
				counts := counting.Load()
				if err := call(); err != nil {
					failure.CompareAndSwap(nil, &err)
					return
				}
				if counts {
					samples[i] = append(samples[i], time.Since(begun))
				}
			}
		})
	}
	who = append(slices.Clone(who), os.Getpid())
	time.Sleep(duration / 10)
	counting.Store(true)
	begun, before, all := time.Now(), spentBy(who), busyMicroseconds()
	time.Sleep(duration)
	stopped.Store(true)
	took := time.Since(begun)
	after, all := spentBy(who), busyMicroseconds()-all
	for i, s := range after {
		after[i] = spent{s.cpu - before[i].cpu, s.wakes - before[i].wakes}
		all -= after[i].cpu
	}
	others = append(others, all/microseconds(took)/float64(runtime.NumCPU()))
	group.Wait()
	if err := failure.Load(); err != nil {
		return result{}, *err
	}
	times := slices.Concat(samples...)
	slices.Sort(times)
	if len(times) == 0 {
		return result{}, fmt.Errorf("no answer came in %v", duration)
	}
	n := float64(len(times))
	for i := range after {
		after[i].cpu /= n
		after[i].wakes /= n
	}
	return result{n / took.Seconds(), microseconds(times[len(times)/2]), microseconds(times[len(times)*99/100]), after}, nil
}

// cell is one operation with so many callers, plugin and bare token in turns.
type cell struct {
	ours, bare []result
}

func (c *cell) of(side []result, value func(result) float64) float64 {
	var values []float64
	for _, r := range side {
		values = append(values, value(r))
	}
	return median(values)
}

// ratio of neighbours in time: what disturbs one disturbs the other.
func (c *cell) ratio(value func(result) float64) float64 {
	var ratios []float64
	for i := range c.ours {
		ratios = append(ratios, value(c.ours[i])/value(c.bare[i]))
	}
	return median(ratios)
}

func rate(r result) float64 { return r.rate }
func p50(r result) float64  { return r.p50 }
func p99(r result) float64  { return r.p99 }

// cpu of all processes that were looked at, but this one's, which is spireCPU: SPIRE's part.
func cpu(r result) (sum float64) {
	for _, s := range r.spent[:len(r.spent)-1] {
		sum += s.cpu
	}
	return sum
}

func spireCPU(r result) float64 { return r.spent[len(r.spent)-1].cpu }

// partCPU and partWakes of one of the processes.
func partCPU(part int) func(result) float64 {
	return func(r result) float64 { return r.spent[part].cpu }
}

func partWakes(part int) func(result) float64 {
	return func(r result) float64 { return r.spent[part].wakes }
}

func measureRates(r *report) error {
	token, p, end, err := newPlugin()
	if err != nil {
		return err
	}
	defer end()
	if err := nineKeys(p); err != nil {
		return err
	}
	fmt.Printf("%-16s %9s %9s %7s  %9s %9s %7s  %9s %9s  %9s %9s %9s\n", "signing, callers", "ours/s", "bare/s", "share",
		"p50 us", "bare", "ratio", "p99 us", "bare", "CPU us", "host's", "bare")
	for _, op := range operations {
		for _, callers := range callerCounts {
			if !wanted(*cells, fmt.Sprintf("%s/%d", op.name, callers)) {
				continue
			}
			var c cell
			for range *rounds {
				ours, err := signFor(p, op, callers, *length)
				if err != nil {
					return err
				}
				bare, err := raw(token, "", "sign", op.name, strconv.Itoa(callers), fmt.Sprint(length.Seconds()))
				if err != nil {
					return err
				}
				c.ours = append(c.ours, ours)
				c.bare = append(c.bare, result{bare.PerSecond, bare.P50, bare.P99, []spent{{cpu: bare.CPU}, {}}})
			}
			c.print(op, callers)
			c.judge(r, op, callers)
		}
	}
	fmt.Println()
	return nil
}

func (c *cell) print(op operation, callers int) {
	fmt.Printf("%-11s %4d %9.0f %9.0f %6.1f%%  %9.0f %9.0f %7.2f  %9.0f %9.0f  %9.1f %9.1f %9.1f\n", op.name, callers,
		c.of(c.ours, rate), c.of(c.bare, rate), 100*c.ratio(rate),
		c.of(c.ours, p50), c.of(c.bare, p50), c.ratio(p50),
		c.of(c.ours, p99), c.of(c.bare, p99), c.of(c.ours, cpu), c.of(c.ours, spireCPU), c.of(c.bare, cpu))
}

func (c *cell) judge(r *report, op operation, callers int) {
	if callers == 32 {
		r.atLeast(fmt.Sprintf("%s at 32 callers, share of the bare token's rate", op.name), c.ratio(rate), op.share)
	}
	if callers == 1 && op.name == "ES256" {
		r.atMost("ES256 at one caller, p50 over the bare token's", c.ratio(p50), 7)
	}
}
