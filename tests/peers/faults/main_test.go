// Package faults_test lets a token fail in every way it can, under the real binary on a
// real SoftHSM behind tests/support/faulty_module.c, while several callers sign through a real
// go-plugin connection and verify what they get.
//
// For each fault: what calls failed (none, where a call can be repeated inside SPIRE's
// 30 s), which workers ended and whether the log says why; and after each group of them:
// every key is there and signs, nothing of others was touched, nothing was left behind,
// neither objects on the token nor descriptors nor memory. LONG=1 leaves nothing out.
package faults_test

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

var long = os.Getenv("LONG") != ""

// row of the table at the end.
type row struct {
	name  string
	mutex sync.Mutex

	faults, survived          int
	signatures, keys          int64
	failed, refused, restarts int
	took                      time.Duration
}

// group adds to the row of that name; stages of one group run side by side.
func group(name string) *row {
	table.Lock()
	defer table.Unlock()
	for _, r := range table.rows {
		if r.name == name {
			return r
		}
	}
	r := &row{name: name}
	table.rows = append(table.rows, r)
	return r
}

var table struct {
	sync.Mutex
	rows []*row
}

func (r *row) add(what func(*row)) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	what(r)
}

func (r *row) count(survived bool, refused int) {
	r.add(func(r *row) {
		r.faults++
		r.refused += refused
		if survived {
			r.survived++
		}
	})
}

// failed: calls that should not have. refused: those the token itself would not do, which
// had its reason for an answer.
func printTable() {
	faults, survived := 0, 0
	format := "%-44s %7v %9v %7v %8v %11v %6v %9v %6v\n"
	fmt.Printf(format, "", "faults", "survived", "failed", "refused", "signatures", "keys", "restarts", "s")
	for _, r := range table.rows {
		fmt.Printf(format, r.name, r.faults, r.survived, r.failed, r.refused, r.signatures, r.keys, r.restarts,
			int(r.took.Seconds()))
		faults += r.faults
		survived += r.survived
	}
	fmt.Printf("faults survived: %d of %d\n", survived, faults)
}

// Most of the time a test here waits for a worker to come back.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "16")
	status := m.Run()
	if len(table.rows) > 0 {
		printTable()
	}
	os.Exit(status)
}
