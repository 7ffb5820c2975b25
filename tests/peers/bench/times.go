package main

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/load"
)

func measureGeneration(*report) error {
	_, p, end, err := newPlugin()
	if err != nil {
		return err
	}
	defer end()
	fmt.Printf("%-16s %9s %9s %9s\n", "GenerateKey, ms", "median", "longest", "made")
	for _, kind := range []struct {
		keyType keymanagerv1.KeyType
		times   int
	}{
		{keymanagerv1.KeyType_EC_P256, 20}, {keymanagerv1.KeyType_EC_P384, 20},
		{keymanagerv1.KeyType_RSA_2048, 10}, {keymanagerv1.KeyType_RSA_4096, 3},
	} {
		var times []time.Duration
		var longest time.Duration
		for range kind.times {
			begun := time.Now()
			if err := generate(p, "x509-CA-A", kind.keyType); err != nil {
				return err
			}
			times = append(times, time.Since(begun))
			longest = max(longest, time.Since(begun))
		}
		fmt.Printf("%-16s %9.1f %9.1f %9d\n", kind.keyType, milliseconds(median(times)), milliseconds(longest), len(times))
	}
	fmt.Println()
	return nil
}

func measureStart(r *report) error {
	fmt.Printf("%-16s %9s %11s %9s %9s  %9s %9s %9s %9s\n", "foreign objects", "start ms", "bare C ms", "ratio", "find+read",
		"PSS MiB", "alone", "front's", "worker's")
	for _, foreign := range []int{0, 100, 1000} {
		if err := measureStartAmong(r, foreign); err != nil {
			return err
		}
	}
	fmt.Println("start: spawn to Configure's answer, nine keys proven; bare C: a program that loads the module, logs in and reads")
	fmt.Println("class, label and id of every object; find+read: its last part alone; PSS: of front and worker, idle; alone: the")
	fmt.Println("same if no other program shared a library; front's, worker's: private memory")
	fmt.Println()
	return nil
}

func measureStartAmong(r *report, foreign int) error {
	token, remove, err := newToken()
	if err != nil {
		return err
	}
	defer remove()
	p, err := open(token, "", "")
	if err != nil {
		return err
	}
	err = nineKeys(p)
	_ = p.Close()
	if err != nil {
		return err
	}
	if _, err := raw(token, "", "fill", strconv.Itoa(foreign/2)); err != nil {
		return err
	}
	var starts []time.Duration
	var whole, read, ratios, pss, alone, front, worker []float64
	for range max(5, *rounds) {
		begun := time.Now()
		p, err := open(token, "", "")
		if err != nil {
			return err
		}
		start := time.Since(begun)
		time.Sleep(300 * time.Millisecond) // what Configure left for later is done
		m := memoryOf(family(p.PID()))
		pss, alone = append(pss, m.pss), append(alone, m.alone)
		front, worker = append(front, m.private[0]), append(worker, m.private[len(m.private)-1])
		if err := p.Close(); err != nil {
			return err
		}
		bare, err := raw(token, "", "enumerate")
		if err != nil {
			return err
		}
		starts = append(starts, start)
		whole = append(whole, bare.WholeMS)
		read = append(read, bare.EnumerateMS)
		ratios = append(ratios, milliseconds(start)/bare.WholeMS)
	}
	fmt.Printf("%-16d %9.1f %11.1f %9.2f %9.1f  %9.1f %9.1f %9.1f %9.1f\n", foreign, milliseconds(median(starts)),
		median(whole), median(ratios), median(read), median(pss), median(alone), median(front), median(worker))
	switch foreign {
	case 0:
		r.atMost("idle PSS in MiB, nine keys", median(pss), 14)
	case 1000:
		r.atMost("start among 1,000 foreign objects over one enumeration in C", median(ratios), 2)
	}
	return nil
}

// measureRecovery kills the worker and signs at once: the signature waits for the next worker.
func measureRecovery(r *report) error {
	const kills = 50
	_, p, end, err := newPlugin()
	if err != nil {
		return err
	}
	defer end()
	key, err := load.Generate(p, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
	if err != nil {
		return err
	}
	var times []time.Duration
	for range kills {
		if err := load.Sign(p, key); err != nil {
			return err
		}
		p.KillWorkers()
		begun := time.Now()
		if err := load.Sign(p, key); err != nil {
			return err
		}
		times = append(times, time.Since(begun))
	}
	fmt.Printf("recovery: kill -9 of the worker until the next signature, %d times: median %.1f ms, worst %.1f ms\n\n",
		kills, milliseconds(median(times)), milliseconds(slices.Max(times)))
	r.atMost("recovery of a killed worker in ms", milliseconds(median(times)), 10)
	return nil
}

// measureLatency: as many bare threads as sessions have the latency that the token really
// shows, which is that of the sleep, of waking up and of the signature.
func measureLatency(r *report) error {
	const latency = 20 * time.Millisecond
	token, remove, err := newToken()
	if err != nil {
		return err
	}
	defer remove()
	script := fmt.Sprintf("profile latency %d\n", latency.Milliseconds())
	fmt.Printf("%-16s %9s %9s %9s %9s %9s\n", "20 ms a C_Sign", "ours/s", "bare/s", "share", "of 1/20ms", "p99 ms")
	for _, sessions := range []int{8, 32} {
		p, err := open(token, fmt.Sprintf("max_sessions = %d", sessions), script)
		if err != nil {
			return err
		}
		err = generate(p, operations[0].name+"-0", operations[0].keyType)
		var got result
		if err == nil {
			got, err = signFor(p, operations[0], 2*sessions, 3**length)
		}
		_ = p.Close()
		if err != nil {
			return err
		}
		bare, err := raw(token, script, "sign", operations[0].name, strconv.Itoa(sessions), fmt.Sprint(length.Seconds()))
		if err != nil {
			return err
		}
		nominal := float64(sessions) / latency.Seconds()
		fmt.Printf("%3d sessions     %9.0f %9.0f %8.1f%% %8.1f%% %9.1f\n", sessions, got.rate, bare.PerSecond,
			100*got.rate/bare.PerSecond, 100*got.rate/nominal, got.p99/1000)
		r.atLeast(fmt.Sprintf("token of 20 ms, %d sessions, share of sessions/latency", sessions), got.rate/bare.PerSecond, 0.97)
	}
	fmt.Println()
	return nil
}

func measureStall(r *report) error {
	const generators = 4
	token, remove, err := newToken()
	if err != nil {
		return err
	}
	defer remove()
	slow := *length + *length/2
	p, err := open(token, "max_sessions = 8", fmt.Sprintf("C_GenerateKeyPair 2-100000 before sleep %d\n", slow.Milliseconds()))
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	if err := generate(p, operations[0].name+"-0", operations[0].keyType); err != nil {
		return err
	}
	var c cell // "bare" is without generations
	for range *rounds {
		without, err := signFor(p, operations[0], 8, *length)
		if err != nil {
			return err
		}
		var group sync.WaitGroup
		failures := make([]error, generators)
		for i := range generators {
			group.Go(func() { failures[i] = generate(p, fmt.Sprintf("slow-%d", i), operations[0].keyType) })
		}
		with, err := signFor(p, operations[0], 8, *length)
		group.Wait()
		for _, failure := range append(failures, err) {
			if failure != nil {
				return failure
			}
		}
		c.ours, c.bare = append(c.ours, with), append(c.bare, without)
	}
	fmt.Printf("%-27s %9s %9s\n", "ES256 at 8 callers", "p99 us", "rate/s")
	fmt.Printf("%-27s %9.0f %9.0f\n", "alone", c.of(c.bare, p99), c.of(c.bare, rate))
	fmt.Printf("%-27s %9.0f %9.0f\n\n", "beside 4 slow generations", c.of(c.ours, p99), c.of(c.ours, rate))
	r.atMost("p99 of signing beside 4 slow generations over alone", c.ratio(p99), 1.25)
	return nil
}
