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
	fmt.Printf("lasting trouble survived: %d of %d\n", survived.Load(), injected.Load())
	os.Exit(status)
}

// How long trouble lasts, in ms.
func lasts() []int {
	if long {
		return []int{20, 300, 3000, 20000}
	}
	return []int{20, 300, 3000}
}

// counted as trouble, which is survived if the test ends well.
func counted(t *testing.T) {
	t.Helper()
	injected.Add(1)
	t.Cleanup(func() {
		if !t.Failed() {
			survived.Add(1)
		}
	})
}
