package outages

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spire-hsm/peers/scene"
)

// What systemd's RemoveIPC=yes takes when a unit stops or a user logs out: the user's files in
// /dev/shm, System V segments, semaphores and queues, and POSIX message queues.

// usesNone of it: neither mapped nor open.
func usesNone(t *testing.T, what string, pid int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	scene.Must(t, err)
	uses := strings.Split(string(maps), "\n")
	descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	scene.Must(t, err)
	if len(descriptors) < 3 {
		t.Fatalf("%s: only %d descriptors can be seen", what, len(descriptors))
	}
	for _, descriptor := range descriptors {
		if target, err := os.Readlink(descriptor); err == nil {
			uses = append(uses, target)
		}
	}
	for _, use := range uses {
		for _, removed := range []string{"/dev/shm/", "/SYSV", "/dev/mqueue"} {
			if strings.Contains(use, removed) {
				t.Errorf("%s has %s, which RemoveIPC would take", what, use)
			}
		}
	}
}

func TestRemoveIPCFindsNothingOfAServerWithAnIdentityFile(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	p, _, l := b.Busy(t, 4)
	usesNone(t, "the front", p.PID())
	for _, pid := range p.Workers() {
		usesNone(t, "the worker", pid)
	}
	l.EndWithoutFailures()
	press := newPress(t, t.TempDir())
	calls := publisher(t, press)
	scene.Must(t, press.publish(calls))
	usesNone(t, "the publisher", calls.PID())
}

// The place of a value is such a file. What the next start no longer knows as its own stays.
func TestRemoveIPCUnderAServerWithAValueLosesNoKey(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		what, option string
		pairs        int
	}{
		{"without a record", "", 3},
		{"with a record", "record_file = %q\n", 2},
	} {
		t.Run(row.what, func(t *testing.T) {
			faults(t, 2)
			b := newValued(t)
			if row.option != "" {
				b.Data += fmt.Sprintf(row.option, filepath.Join(b.Dir, "record"))
			}
			removeIPC := func() {
				t.Helper()
				places, err := filepath.Glob(filepath.Join(b.Dir, "host", "*"))
				scene.Must(t, err)
				if len(places) == 0 {
					t.Fatal("no place of the value is there: nothing was tried")
				}
				for _, place := range places {
					scene.Must(t, os.Remove(place))
				}
			}
			p := b.readyOn(t, "host")
			x509, jwt := scene.Generate(t, p, "x509-CA-A", p256), scene.Generate(t, p, "JWT-Signer-A", p256)
			removeIPC() // the user logs out
			scene.Sign(t, p, x509, jwt)
			x509 = scene.Generate(t, p, "x509-CA-A", p256)
			b.expectPairs(t, 2)
			unload(t, p)

			p = b.readyOn(t, "host")
			scene.Sign(t, p, x509, jwt)
			x509 = scene.Generate(t, p, "x509-CA-A", p256)
			unload(t, p)
			removeIPC() // the unit has stopped

			p = b.readyOn(t, "host")
			scene.Sign(t, p, x509, jwt)
			b.expectPairs(t, row.pairs)
		})
	}
}
