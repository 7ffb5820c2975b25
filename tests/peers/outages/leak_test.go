package outages

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
)

// A library that loses a descriptor and some memory with each session and each signature uses up
// what its process may have, again and again. The worker is the process, and is replaced.
func TestALibraryThatLeaksCostsNoCallAndTheFrontNothing(t *testing.T) {
	t.Parallel()
	const limit, exhausted = "100", 3
	faults(t, exhausted)
	b := newFaulty(t, "", "profile leaky")
	p := host.Start(t, host.Options{Type: "KeyManager", Env: b.Environ, Change: func(cmd *exec.Cmd) {
		cmd.Args = []string{"/bin/sh", "-c", `ulimit -Sn "$1" && exec "$0"`, cmd.Path, limit}
		cmd.Path = "/bin/sh"
	}})
	scene.Must(t, p.Configure(domain, b.Data))
	key, l := scene.Work(t, p, 4)
	l.Rotate("JWT-Signer-A")
	l.Await(10)
	before := open(t, p.PID())
	scene.Eventually(t, "workers have used up what they may have", func() bool { return len(p.Ends()) >= exhausted })
	l.Await(10)
	l.EndWithoutFailures()
	if after := open(t, p.PID()); after > before+2 { // the odd one of gRPC's is no leak
		t.Errorf("the front had %d descriptors open, and has %d", before, after)
	}
	scene.Sign(t, p, key)
}

// open descriptors of a process.
func open(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	scene.Must(t, err)
	return len(entries)
}
