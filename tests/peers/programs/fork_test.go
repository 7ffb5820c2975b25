package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// descriptors of a process by number, beyond those for input, output and complaints.
func descriptors(t testing.TB, pid int) map[int]string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	scene.Must(t, err)
	found := map[int]string{}
	for _, link := range links {
		number, _ := strconv.Atoi(filepath.Base(link))
		if to, err := os.Readlink(link); err == nil && number > 2 {
			found[number] = to
		}
	}
	return found
}

// helper is a child that the module forks in C_Initialize, and that lives on.
type helper string

func newHelper(token *softhsm.Token, name string) helper {
	return helper(filepath.Join(token.Dir, name))
}

func (h helper) env() string { return "COLLIDE_FORK=" + string(h) }

func (h helper) pid(t testing.TB) (pid int) {
	t.Helper()
	scene.Eventually(t, "the module's helper runs", func() bool {
		text, _ := os.ReadFile(string(h))
		_, err := fmt.Sscanf(string(text), "%d\n", &pid)
		return err == nil
	})
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

func TestWhatAModuleForksKeepsNothingOfOurs(t *testing.T) {
	needRoot(t)
	token := softhsm.New(t)
	data, env := colliding(t, token)
	first, second := newHelper(token, "first"), newHelper(token, "second")
	p := start(t, append(env, first.env())...)
	scene.Must(t, p.Configure(scene.Domain, data))
	pid, parent := first.pid(t), worker(t, p)
	ours := descriptors(t, parent)
	if !strings.Contains(fmt.Sprint(ours), "memfd:spire-hsm-page") || !strings.Contains(fmt.Sprint(ours), "hsm-id") {
		t.Fatalf("not even the worker has page and lock: %v", ours)
	}
	for number, what := range descriptors(t, pid) {
		for _, one := range ours {
			if what == one && what != "/dev/null" {
				t.Errorf("the helper has %s as %d", what, number)
			}
		}
	}
	if path, is := mapped(t, pid)["memfd:spire-hsm-page"]; is {
		t.Errorf("the helper has mapped %s", path)
	}
	key := scene.Generate(t, p, "ec", p256)

	p.Kill() // at once, as by the kernel for want of memory; and its worker
	_ = syscall.Kill(parent, syscall.SIGKILL)
	scene.Eventually(t, "both are gone", func() bool { return p.Exited() && host.Gone(parent) })
	if host.Gone(pid) {
		t.Fatal("the helper is gone, too: this test shows nothing")
	}
	again := start(t, append(env, second.env())...)
	scene.Must(t, again.Configure(scene.Domain, data))
	scene.Sign(t, again, key)
	_ = second.pid(t)
}

func TestWhoHoldsTheIdentityIsNamed(t *testing.T) {
	t.Parallel() // who is refused has waited for the other to go
	token := softhsm.New(t)
	holder, other := start(t, token.Env()...), start(t, token.Env()...)
	scene.Must(t, holder.Configure(scene.Domain, token.PluginData("")))
	named := fmt.Sprintf("in use by another process (process %d, spire-hsm)", holder.PID())
	expect(t, other.Configure(scene.Domain, token.PluginData("")), codes.FailedPrecondition, named, "hsm-id")
	scene.Must(t, holder.Close())
	scene.Must(t, other.Configure(scene.Domain, token.PluginData("")))
}

// A lock is held by all who have its file open: of those only one took it, and may have ended.
func TestWhoIsLeftWithTheIdentityIsNamedOnceItsTakerHasEnded(t *testing.T) {
	t.Parallel()
	needRoot(t)
	token := softhsm.New(t)
	p := start(t, token.Env()...)
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	scene.Must(t, p.Close())
	// a shell takes the lock, leaves it to its child, and ends
	file := filepath.Join(token.Dir, "hsm-id")
	pipe, err := exec.Command("sh", "-c", `exec 9<"$0"; flock 9; sleep 600 >/dev/null 2>&1 & echo $!`, file).Output()
	scene.Must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(pipe)))
	scene.Must(t, err)
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	expect(t, start(t, token.Env()...).Configure(scene.Domain, token.PluginData("")), codes.FailedPrecondition,
		fmt.Sprintf("(process %d, sleep)", pid))
}
