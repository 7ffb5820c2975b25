package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/softhsm"
)

// measurePeer compares us with a straightforward plugin in Go (tests/peers/rival), each with and
// without a verification of every signature, in turns. Only the ratios say something: both are ours
// over the peer's that does the same.
func measurePeer(*report) error {
	sides := []*side{
		{name: "ours", binary: *binary}, {name: "peer", binary: *peer},
		{name: "ours, all verified", binary: *binary, options: "verify_signatures = \"always\"\n"},
		{name: "peer, all verified", binary: *peer, options: "verify_signatures = \"always\"\n"},
	}
	if err := comparePeerStarts(sides[:2]); err != nil {
		return err
	}
	for _, s := range sides {
		end, err := s.open()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		defer end()
	}
	fmt.Printf("%-16s %18s %18s   %18s %18s\n", "ours/peer", "rate", "all verified", "p50", "all verified")
	if err := comparePeerLooks(sides); err != nil {
		return err
	}
	var costs []string
	for _, op := range operations {
		for _, callers := range []int{1, 32} {
			if !wanted(*cells, fmt.Sprintf("%s/%d", op.name, callers)) {
				continue
			}
			if err := takeTurns(sides, op, callers); err != nil {
				return err
			}
			name := fmt.Sprintf("%-11s %4d", op.name, callers)
			printPeerRow(name, sides)
			costs = append(costs, costRow(name, sides[0].results, sides[1].results))
		}
	}
	printCosts(costs)
	return nil
}

func printCosts(rows []string) {
	const header = " %7s %7s %7s  %7s %7s "
	fmt.Printf("\n%-16s"+header+header+" %9s\n", "CPU us, wakes", "front", "worker", "host", "peer", "host",
		"front", "worker", "host", "peer", "host", "ours/peer")
	fmt.Println(strings.Join(rows, "\n"))
	fmt.Println("a call; host: this program, which is SPIRE's part; wakes: how often a thread went to sleep; ours/peer: CPU of all")
	fmt.Println()
}

// costRow says where the time of a call goes. Who else is busy on the machine bends that less than
// the rates.
func costRow(name string, ours, peer []result) string {
	c := cell{ours: ours, bare: peer}
	row := fmt.Sprintf("%-16s", name)
	for _, what := range []func(part int) func(result) float64{partCPU, partWakes} {
		for part := range 3 {
			row += fmt.Sprintf(" %7.2f", c.of(ours, what(part)))
		}
		row += fmt.Sprintf("  %7.2f %7.2f ", c.of(peer, what(0)), c.of(peer, what(1)))
	}
	whole := func(r result) float64 { return cpu(r) + spireCPU(r) }
	return row + fmt.Sprintf(" %9.2f", c.ratio(whole))
}

func printPeerRow(name string, sides []*side) {
	fmt.Printf("%-16s", name)
	for _, value := range []func(result) float64{rate, p50} {
		for i := 0; i < len(sides); i += 2 {
			c := cell{ours: sides[i].results, bare: sides[i+1].results}
			fmt.Printf(" %18.2f", c.ratio(value))
		}
		fmt.Print("  ")
	}
	fmt.Println()
}

// comparePeerLooks: GetPublicKey by one caller, as SPIRE asks.
func comparePeerLooks(sides []*side) error {
	const looks = 2000
	for _, s := range sides {
		s.results = nil
	}
	for range *rounds {
		for _, s := range sides {
			var times []time.Duration
			for range looks {
				begun := time.Now()
				if _, err := s.p.KeyManager().GetPublicKey(ctx, &keymanagerv1.GetPublicKeyRequest{KeyId: "ES256-0"}); err != nil {
					return fmt.Errorf("%s: GetPublicKey: %w", s.name, err)
				}
				times = append(times, time.Since(begun))
			}
			slices.Sort(times)
			middle := microseconds(times[len(times)/2])
			s.results = append(s.results, result{rate: 1e6 / middle, p50: middle})
		}
	}
	printPeerRow("GetPublicKey   1", sides)
	return nil
}

// comparePeerStarts: spawn to Configure's answer, on a token with so many keys, in turns.
func comparePeerStarts(sides []*side) error {
	fmt.Printf("%-16s %18s %18s\n", "start, keys", "ours/peer", "ours less peer, ms")
	for _, keys := range []int{0, 100} {
		tokens := make([]*softhsm.Token, len(sides))
		for i, s := range sides {
			token, remove, err := newToken()
			if err != nil {
				return err
			}
			defer remove()
			tokens[i] = token
			if err := s.fill(token, keys); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		var ratios []float64
		var differences []time.Duration
		for range max(5, *rounds) {
			var took [2]time.Duration
			for i, s := range sides {
				var err error
				if took[i], err = s.start(tokens[i]); err != nil {
					return fmt.Errorf("%s: start with %d keys: %w", s.name, keys, err)
				}
			}
			ratios = append(ratios, float64(took[0])/float64(took[1]))
			differences = append(differences, took[0]-took[1])
		}
		fmt.Printf("%-16d %18.2f %18.1f\n", keys, median(ratios), milliseconds(median(differences)))
	}
	fmt.Println()
	return nil
}

func (s *side) fill(token *softhsm.Token, keys int) error {
	p, err := openBinary(s.binary, token, s.options, "")
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	for i := range keys {
		if err := generate(p, fmt.Sprintf("key-%d", i), operations[0].keyType); err != nil {
			return err
		}
	}
	return nil
}

func (s *side) start(token *softhsm.Token) (time.Duration, error) {
	begun := time.Now()
	p, err := openBinary(s.binary, token, s.options, "")
	took := time.Since(begun)
	if err != nil {
		return 0, err
	}
	return took, p.Close()
}
