package lasting_test

import (
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
)

var (
	long = os.Getenv("LONG") != ""

	injected, survived atomic.Int64
)

// Most of the time a test here waits for the trouble to pass.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "16")
	status := m.Run()
	fmt.Printf("faults survived: %d of %d\n", survived.Load(), injected.Load())
	os.Exit(status)
}

// trouble of this test; it counts as survived if it ends well.
func trouble(t *testing.T) {
	t.Helper()
	injected.Add(1)
	t.Cleanup(func() {
		if !t.Failed() {
			survived.Add(1)
		}
	})
}
