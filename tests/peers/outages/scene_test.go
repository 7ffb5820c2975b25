// Package outages takes away what the plugin stands on, while it is at work: processes, the
// token, its room, its PIN, the disk the bundle goes to, its configuration. Each test says
// how many faults it injected, and its target: no failed call where a call can be repeated
// in its time, else the right error, nothing lost, and recovery unaided.
//
// SPIRE_HSM is the binary. LONG=1 is for the repetitions and waits that take minutes.
package outages

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const (
	domain  = scene.Domain
	p256    = keymanagerv1.KeyType_EC_P256
	rsa2048 = keymanagerv1.KeyType_RSA_2048
)

var (
	ctx  = context.Background()
	long = os.Getenv("LONG") != ""

	injected atomic.Int64
	survived atomic.Int64
)

// Most of the time a test here waits.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8")
	status := m.Run()
	fmt.Printf("faults survived: %d of %d\n", survived.Load(), injected.Load())
	os.Exit(status)
}

// faults of this test; they count as survived if it ends well.
func faults(t *testing.T, count int) {
	t.Helper()
	injected.Add(int64(count))
	t.Cleanup(func() {
		if !t.Failed() {
			survived.Add(int64(count))
		}
	})
}

// either the short or the long one.
func either[T any](short, inLong T) T {
	if long {
		return inLong
	}
	return short
}

// ---- the plugin ----

// bench is a token and what a plugin is told to find it.
type bench struct {
	*softhsm.Token
	scene.Setting
	module *faulty.Module // nil if it is SoftHSM itself
}

func newBench(t testing.TB, more string) *bench {
	t.Helper()
	token := softhsm.New(t)
	return &bench{Token: token, Setting: scene.Setting{Data: token.PluginData(more), Environ: token.Env()}}
}

// newFaulty has the fault-injecting module between the plugin and the token.
func newFaulty(t testing.TB, more, script string) *bench {
	t.Helper()
	b := newBench(t, more)
	b.module = faulty.Wrap(t, b.Token)
	b.Data = b.module.In(b.Data)
	b.Environ = append(b.Environ, b.module.Env()...)
	b.module.Play(t, "%s", script)
	return b
}

// unload is an orderly end, as at a restart of the server.
func unload(t testing.TB, p *host.Plugin) {
	t.Helper()
	scene.Must(t, p.Close())
}

// served keys by id.
func served(t testing.TB, p *host.Plugin) map[string]*keymanagerv1.PublicKey {
	t.Helper()
	response, err := p.KeyManager().GetPublicKeys(ctx, &keymanagerv1.GetPublicKeysRequest{})
	scene.Must(t, err)
	found := map[string]*keymanagerv1.PublicKey{}
	for _, key := range response.PublicKeys {
		found[key.Id] = key
	}
	return found
}

func expect(t testing.TB, err error, code codes.Code, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
			t.Errorf("got %v; want %v with %q", err, code, text)
		}
	}
}

// expectEnds of workers: those that were to die, and no other.
func expectEnds(t testing.TB, p *host.Plugin, want int) {
	t.Helper()
	scene.Eventually(t, fmt.Sprintf("%d workers ended", want), func() bool { return len(p.Ends()) >= want })
	if n := len(p.Ends()); n != want {
		t.Errorf("%d workers ended, want %d", n, want)
	}
}

// named objects: how many there are of each class and label.
func (b *bench) named(t *testing.T) map[string]int {
	t.Helper()
	found := map[string]int{}
	class := ""
	for _, line := range strings.Split(b.Tool(t, "--list-objects"), "\n") {
		if !strings.HasPrefix(line, " ") {
			class = strings.Split(line, " ")[0]
		} else if name, ok := strings.CutPrefix(strings.TrimSpace(line), "label:"); ok {
			if label := strings.Trim(name, " '"); label != "" {
				found[class+" "+label]++
			}
		}
	}
	return found
}

// ---- disks ----

// mount a small tmpfs of so many kilobytes; for root alone.
func mount(t testing.TB, directory string, kilobytes int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	scene.Must(t, os.MkdirAll(directory, 0o700))
	scene.Must(t, syscall.Mount("tmpfs", directory, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=0700", kilobytes)))
	t.Cleanup(func() { _ = syscall.Unmount(directory, syscall.MNT_DETACH) })
}

// mountFreezable is a disk that can be stopped: who writes to it waits, and not even SIGKILL ends that
// wait. Where there is no such disk the test is skipped.
func mountFreezable(t testing.TB, directory string) (freeze func() (thaw func())) {
	t.Helper()
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878 // <linux/fs.h>
	image := directory + ".image"
	scene.Must(t, os.MkdirAll(directory, 0o700))
	scene.Must(t, os.WriteFile(image, nil, 0o600))
	scene.Must(t, os.Truncate(image, 8<<20))
	for _, command := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, directory}} {
		if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no disk that can be frozen: %v: %v %s", command, err, output)
		}
	}
	t.Cleanup(func() { _ = syscall.Unmount(directory, syscall.MNT_DETACH) })
	return func() func() {
		t.Helper()
		root, err := os.Open(directory)
		scene.Must(t, err)
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, root.Fd(), fiFreeze, 0); errno != 0 {
			t.Skipf("no disk that can be frozen: %v", errno)
		}
		thaw := sync.OnceFunc(func() {
			_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, root.Fd(), fiThaw, 0)
			_ = root.Close()
		})
		t.Cleanup(thaw)
		return thaw
	}
}

func remount(t testing.TB, directory string, readOnly bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if readOnly {
		flags |= syscall.MS_RDONLY
	}
	scene.Must(t, syscall.Mount("", directory, "", flags, ""))
}

// fill a disk to the last byte; the file to remove.
func fill(t testing.TB, directory string) string {
	t.Helper()
	path := filepath.Join(directory, "filler")
	file, err := os.Create(path)
	scene.Must(t, err)
	defer func() { _ = file.Close() }()
	block := make([]byte, 4096)
	for err == nil {
		_, err = file.Write(block)
	}
	for err = nil; err == nil; {
		_, err = file.Write(block[:1])
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return path
}
