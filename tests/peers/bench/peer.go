package main

import (
	"fmt"
	"slices"
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
	for _, op := range operations {
		for _, callers := range []int{1, 32} {
			if !wanted(*cells, fmt.Sprintf("%s/%d", op.name, callers)) {
				continue
			}
			if err := takeTurns(sides, op, callers); err != nil {
				return err
			}
			printPeerRow(fmt.Sprintf("%-11s %4d", op.name, callers), sides)
		}
	}
	fmt.Println()
	return nil
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
