package main

import (
	"fmt"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/load"
)

// pause of the token at each call, whatever other sessions do.
const pause = 5 * time.Millisecond

// crowded is what a start and a rotation took.
type crowded struct {
	start      time.Duration
	generation time.Duration // median of five, begun at once
	signature  time.Duration // likewise
}

// measureCrowd: a start and a rotation cost what our own keys cost, whatever else is on the token.
func measureCrowd(r *report) error {
	const crowd = 10000
	fmt.Printf("%-16s %12s %15s %9s\n", fmt.Sprintf("%v a call", pause), "start ms", "GenerateKey ms", "Sign ms")
	var results []crowded
	for _, others := range []int{0, crowd} {
		result, err := measureAmong(others)
		if err != nil {
			return err
		}
		fmt.Printf("%9d others %12.0f %15.0f %9.1f\n", others,
			milliseconds(result.start), milliseconds(result.generation), milliseconds(result.signature))
		results = append(results, result)
	}
	fmt.Println("start: with a record of nine keys; GenerateKey and Sign: at once after it, while the token is walked over")
	fmt.Println()
	r.atMost("GenerateKey among 10,000 others' objects, ratio", ratio(results[1].generation, results[0].generation), 1.2)
	r.atMost("a start among them, in ms above one without", milliseconds(results[1].start-results[0].start), 2000)
	return nil
}

func ratio(a, b time.Duration) float64 {
	return float64(a) / float64(b)
}

func measureAmong(others int) (result crowded, err error) {
	token, remove, err := newToken()
	if err != nil {
		return result, err
	}
	defer remove()
	p, err := open(token, "", "")
	if err != nil {
		return result, err
	}
	err = nineKeys(p)
	_ = p.Close()
	if err != nil {
		return result, err
	}
	script := fmt.Sprintf("* before sleep %d\n", pause.Milliseconds())
	if others > 0 {
		script += fmt.Sprintf("profile crowd %d\n", others)
	}
	begun := time.Now()
	p, err = open(token, "", script)
	if err != nil {
		return result, err
	}
	defer func() { _ = p.Close() }()
	result.start = time.Since(begun)
	var generations, signatures []time.Duration
	for range 5 {
		begun := time.Now()
		key, err := load.Generate(p, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
		if err != nil {
			return result, err
		}
		made := time.Now()
		if err := load.Sign(p, key); err != nil {
			return result, err
		}
		generations = append(generations, made.Sub(begun))
		signatures = append(signatures, time.Since(made))
	}
	result.generation, result.signature = median(generations), median(signatures)
	return result, nil
}
