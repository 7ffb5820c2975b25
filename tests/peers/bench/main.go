// Bench measures the plugin through the socket SPIRE would use, beside the bare token in
// the same run, and prints one table. It is a report: a missed target is said, not punished;
// the exit status is about what could not be measured at all.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

var (
	binary  = flag.String("plugin", os.Getenv("SPIRE_HSM"), "the spire-hsm binary")
	rawSign = flag.String("raw", "", "the raw_sign program")
	base    = flag.String("base", "", "another spire-hsm, to compare its rates in section verify")
	peer    = flag.String("peer", "", "tests/peers/rival, built, for section peer")
	spire   = flag.String("spire", "", "the folder of spire-server, for section server")
	faulty  = flag.String("faulty", "", "faulty.so, for a slow token")
	rounds  = flag.Int("rounds", 3, "how often plugin and bare token take turns")
	length  = flag.Duration("length", time.Second, "of a round")
	only    = flag.String("only", "", "sections, comma-separated: rates, verify, peer, server, generate, start, crowd, latency, stall, recover")
	cells   = flag.String("cells", "", "of the rates, comma-separated: ES256/1, RS256/32, ..")
)

var ctx = context.Background()

type section struct {
	name string
	run  func(*report) error
}

var sections = []section{
	{"rates", measureRates},
	{"verify", measureVerification},
	{"peer", measurePeer},
	{"server", measureServer},
	{"generate", measureGeneration},
	{"start", measureStart},
	{"crowd", measureCrowd},
	{"latency", measureLatency},
	{"stall", measureStall},
	{"recover", measureRecovery},
}

func main() {
	flag.Parse()
	for _, path := range []*string{binary, rawSign, peer, spire, faulty} {
		absolute, err := filepath.Abs(*path)
		if _, missing := os.Stat(absolute); *path == "" || err != nil || missing != nil {
			fmt.Fprintln(os.Stderr, "bench: -plugin, -raw, -peer, -spire and -faulty are paths; see make bench")
			os.Exit(2)
		}
		*path = absolute
	}
	r := &report{}
	fmt.Printf("%d CPUs, %s, %d rounds of %v; ours/bare: medians over the rounds\n\n",
		runtime.NumCPU(), cpuModel(), *rounds, *length)
	failed := false
	for _, s := range sections {
		if !wanted(*only, s.name) {
			continue
		}
		if err := s.run(r); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", s.name, err)
			failed = true
		}
	}
	r.verdicts()
	disturbed()
	if failed {
		os.Exit(1)
	}
}

// wanted: is it in the list? Everything is in an empty one.
func wanted(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

// report collects what was aimed at.
type report struct {
	goals []goal
}

type goal struct {
	what    string
	got     float64
	least   bool // got shall be at least the target, else at most
	target  float64
	percent bool
}

func (r *report) atLeast(what string, got, target float64) {
	r.goals = append(r.goals, goal{what: what, got: got, least: true, target: target, percent: true})
}

func (r *report) atMost(what string, got, target float64) {
	r.goals = append(r.goals, goal{what: what, got: got, target: target})
}

func (r *report) verdicts() {
	fmt.Printf("%-58s %10s %10s\n", "target", "got", "")
	for _, g := range r.goals {
		sign, met := "<=", g.got <= g.target
		if g.least {
			sign, met = ">=", g.got >= g.target
		}
		verdict := map[bool]string{true: "met", false: "MISSED"}[met]
		got, target := fmt.Sprintf("%.2f", g.got), fmt.Sprintf("%.4g", g.target)
		if g.percent {
			got, target = fmt.Sprintf("%.1f%%", 100*g.got), fmt.Sprintf("%.0f%%", 100*g.target)
		}
		fmt.Printf("%-58s %10s %10s\n", g.what+" "+sign+" "+target, got, verdict)
	}
}

// disturbed says how far the figures can be trusted: whoever else wants the CPUs takes more
// from a few busy threads than from the bare token's 32.
func disturbed() {
	if share := median(others); share > 0.05 {
		fmt.Printf("\nothers had %.0f%% of the machine meanwhile: measure again when it is quiet\n", 100*share)
	}
}

func median[T int | float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

func milliseconds(d time.Duration) float64 {
	return float64(d) / float64(time.Millisecond)
}

func microseconds(d time.Duration) float64 {
	return float64(d) / float64(time.Microsecond)
}
