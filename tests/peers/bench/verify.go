package main

import (
	"fmt"

	"spire-hsm/peers/host"
)

// side is one of those that are compared: a plugin on a token of its own, and what it reached.
type side struct {
	name, binary, options string
	p                     *host.Plugin
	results               []result
}

// measureVerification shows what it costs to verify signatures before they leave: some of a fast
// token's, as by default, beside all of them. With -base another build of the plugin takes turns.
func measureVerification(r *report) error {
	sides := []*side{{name: "auto", binary: *binary}, {name: "always", binary: *binary, options: "verify_signatures = \"always\"\n"}}
	if *base != "" {
		sides = append(sides, &side{name: "base", binary: *base})
	}
	for _, s := range sides {
		end, err := s.open()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		defer end()
	}
	fmt.Printf("%-16s", "verifying")
	for _, s := range sides {
		fmt.Printf("  %8s/s %7s %7s %7s", s.name, "p50 us", "CPU us", "share")
	}
	fmt.Println()
	for _, op := range operations {
		for _, callers := range []int{1, 32} {
			if !wanted(*cells, fmt.Sprintf("%s/%d", op.name, callers)) {
				continue
			}
			if err := compare(sides, op, callers); err != nil {
				return err
			}
			if *base != "" {
				r.atLeast(fmt.Sprintf("%s/%d with verification, share of the base's rate", op.name, callers), share(sides[0], sides[2]), 0.97)
			}
		}
	}
	fmt.Println()
	return nil
}

func (s *side) open() (end func(), err error) {
	token, remove, err := newToken()
	if err != nil {
		return nil, err
	}
	s.p, err = openBinary(s.binary, token, s.options, "")
	if err == nil {
		err = nineKeys(s.p)
	}
	if err != nil {
		remove()
		return nil, err
	}
	return func() {
		_ = s.p.Close()
		remove()
	}, nil
}

func takeTurns(sides []*side, op operation, callers int) error {
	for _, s := range sides {
		s.results = nil
	}
	for range *rounds {
		for _, s := range sides {
			result, err := signFor(s.p, op, callers, *length)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.results = append(s.results, result)
		}
	}
	return nil
}

// compare the sides in turns, and print a row; share is that of the last side's rate.
func compare(sides []*side, op operation, callers int) error {
	if err := takeTurns(sides, op, callers); err != nil {
		return err
	}
	fmt.Printf("%-11s %4d", op.name, callers)
	var c cell
	for _, s := range sides {
		fmt.Printf("  %10.0f %7.0f %7.1f %6.1f%%", c.of(s.results, rate), c.of(s.results, p50), c.of(s.results, cpu), 100*share(s, sides[len(sides)-1]))
	}
	fmt.Println()
	return nil
}

func share(s, of *side) float64 {
	c := cell{ours: s.results, bare: of.results}
	return c.ratio(rate)
}
