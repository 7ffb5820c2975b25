// Package security looks at the plugin's processes as somebody would who has no business with
// them: what can be read, dumped, connected to or inherited. Each look is first tried where it
// must succeed, so that a look which sees nothing means something.
package security

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const (
	domain = "example.org"
	nobody = 65534

	// Nowhere else: it is searched for in memory and in logs.
	secret = "7Zq3xKw0-the-PIN-of-this-test"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may look into other processes, or be somebody else")
	}
}

// unsanitized: a sanitizer wants to trace its process, too.
func unsanitized(t *testing.T, p *host.Plugin) {
	t.Helper()
	if p.Sanitized() {
		t.Skip("this binary has a sanitizer in it")
	}
}

// aToken has the secret as its PIN.
func aToken(t *testing.T) *softhsm.Token {
	t.Helper()
	token := softhsm.New(t)
	token.Label, token.PIN = "secret", secret
	token.Init(t, token.Label)
	scene.Must(t, os.WriteFile(token.PINFile, []byte(secret+"\n"), 0o600))
	return token
}

// withPIN is plugin_data with another line in the place of pin_file.
func withPIN(token *softhsm.Token, line string) string {
	return strings.Replace(token.PluginData(""), fmt.Sprintf("pin_file = %q", token.PINFile), line, 1)
}

func start(t *testing.T, token *softhsm.Token, env ...string) *host.Plugin {
	t.Helper()
	return host.Start(t, host.Options{Type: "KeyManager", Env: append(append(os.Environ(), token.Env()...), env...)})
}

// worker is the one that is there: those of earlier configurations are waited for.
func worker(t *testing.T, p *host.Plugin) int {
	t.Helper()
	for patience := time.Now().Add(time.Minute); time.Now().Before(patience); time.Sleep(10 * time.Millisecond) {
		if all := p.Workers(); len(all) == 1 {
			return all[0]
		}
	}
	t.Fatalf("workers after a minute: %v", p.Workers())
	return 0
}

// cored: is there a core in this directory?
func cored(t *testing.T, directory string) bool {
	t.Helper()
	cores, err := filepath.Glob(filepath.Join(directory, "core*"))
	scene.Must(t, err)
	return len(cores) > 0
}

// coreDumps on, for us and all we start, as a careless operator may have them.
func coreDumps(t *testing.T) {
	t.Helper()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	scene.Must(t, err)
	if !strings.HasPrefix(string(pattern), "core") {
		t.Skipf("cores do not go into the current directory here, but to %s", pattern)
	}
	var before syscall.Rlimit
	scene.Must(t, syscall.Getrlimit(syscall.RLIMIT_CORE, &before))
	if before.Max != ^uint64(0) {
		t.Skipf("cores are limited to %d bytes here", before.Max)
	}
	scene.Must(t, syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: before.Max, Max: before.Max}))
	t.Cleanup(func() { scene.Must(t, syscall.Setrlimit(syscall.RLIMIT_CORE, &before)) })
}

func TestNoProcessLeavesACore(t *testing.T) {
	coreDumps(t)
	control := exec.Command("sleep", "600")
	control.Dir = t.TempDir()
	scene.Must(t, control.Start())
	scene.Must(t, control.Process.Signal(syscall.SIGABRT))
	_ = control.Wait()
	if !cored(t, control.Dir) {
		t.Skip("not even sleep leaves a core here")
	}

	token := aToken(t)
	directory := t.TempDir()
	p := host.Start(t, host.Options{Type: "KeyManager", Env: append(os.Environ(), token.Env()...),
		Change: func(cmd *exec.Cmd) { cmd.Dir = directory }})
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	scene.Must(t, syscall.Kill(worker(t, p), syscall.SIGABRT))
	p.Logs.Wait(t, "signal 6")
	if cored(t, directory) {
		t.Error("the worker left a core")
	}
	_ = worker(t, p)
	scene.Must(t, p.Signal(syscall.SIGABRT))
	for !p.Exited() {
		time.Sleep(10 * time.Millisecond)
	}
	if cored(t, directory) {
		t.Error("the front left a core")
	}

	// a command outlives the library, and says what it saw of its end
	config, script := filepath.Join(token.Dir, "plugin_data"), filepath.Join(token.Dir, "script")
	faulty := filepath.Join(filepath.Dir(host.Binary(t)), "tests", "faulty.so")
	scene.Must(t, os.WriteFile(config, []byte(strings.Replace(token.PluginData(""),
		softhsm.Module(), faulty, 1)), 0o600))
	scene.Must(t, os.WriteFile(script, []byte("C_Login after abort\n"), 0o600))
	command := exec.Command(host.Binary(t), "check", "--config", config, "--trust-domain", domain)
	command.Dir = directory
	command.Env = append(append(os.Environ(), token.Env()...), "FAULTY_MODULE="+softhsm.Module(), "FAULTY_SCRIPT="+script)
	output, err := command.CombinedOutput()
	if status := command.ProcessState.ExitCode(); status != 1 || !strings.Contains(string(output), "worker ended: signal 6") {
		t.Errorf("check: %v\n%s", err, output)
	}
	if cored(t, directory) {
		t.Error("the command left a core")
	}
}

// as runs a command as another user and says whether it succeeded.
func as(uid uint32, name string, args ...string) bool {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/" // ours may be closed to him
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd.Run() == nil
}

// belongTo gives everything below a directory away, and opens the way there.
func belongTo(t *testing.T, uid int, directory string) {
	t.Helper()
	scene.Must(t, os.Chmod(filepath.Dir(directory), 0o755))
	scene.Must(t, filepath.Walk(directory, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	}))
}

// Not even processes of the same user, which could otherwise trace it.
func TestNobodyOfTheSameUserCanLookInside(t *testing.T) {
	needRoot(t)
	token := aToken(t)
	program := host.Install(t, token.Dir) // where he gets at it
	belongTo(t, nobody, token.Dir)
	own := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	control := exec.Command("sleep", "600")
	control.SysProcAttr = own
	scene.Must(t, control.Start())
	t.Cleanup(func() { _ = control.Process.Kill(); _ = control.Wait() })
	if !as(nobody, "cat", fmt.Sprintf("/proc/%d/environ", control.Process.Pid)) {
		t.Fatal("not even sleep can be looked into")
	}

	p := host.Start(t, host.Options{Path: program, Type: "KeyManager",
		Env:    append(os.Environ(), append(token.Env(), "TMPDIR="+token.Dir)...),
		Change: func(cmd *exec.Cmd) { cmd.SysProcAttr = own; cmd.Dir = "/" }})
	unsanitized(t, p)
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	for name, pid := range map[string]int{"front": p.PID(), "worker": worker(t, p)} {
		for _, file := range []string{"environ", "mem", "maps"} {
			if as(nobody, "head", "-c", "0", fmt.Sprintf("/proc/%d/%s", pid, file)) {
				t.Errorf("%s: /proc/PID/%s is open to its user", name, file)
			}
		}
	}
}

func TestTheSocketIsReachedByItsOwnerAlone(t *testing.T) {
	needRoot(t)
	directory := t.TempDir()
	scene.Must(t, os.Chmod(filepath.Dir(directory), 0o755))
	scene.Must(t, os.Chmod(directory, 0o777)) // as /tmp is
	reaches := func(uid uint32, socket string) bool {
		return as(uid, "perl", "-MSocket", "-e",
			"socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un(shift)) or exit 1", socket)
	}
	control, err := net.Listen("unix", filepath.Join(directory, "open"))
	scene.Must(t, err)
	defer control.Close()
	scene.Must(t, os.Chmod(control.Addr().String(), 0o777))
	if !reaches(nobody, control.Addr().String()) {
		t.Fatal("not even a socket that is open to all is reached")
	}
	b := host.StartBare(t, "KeyManager", "TMPDIR="+directory)
	if !reaches(0, b.Socket) {
		t.Error("its owner does not reach it")
	}
	if reaches(nobody, b.Socket) {
		t.Error("somebody else reaches it")
	}
}

// What the host has open may be a listening socket or a database.
func TestTheWorkerInheritsNothingButItsOwn(t *testing.T) {
	token := aToken(t)
	theirs, err := os.CreateTemp(t.TempDir(), "the-hosts-own-")
	scene.Must(t, err)
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	scene.Must(t, err)
	defer listener.Close()
	listening, err := listener.(*net.UnixListener).File()
	scene.Must(t, err)
	p := host.Start(t, host.Options{Type: "KeyManager", Env: append(os.Environ(), token.Env()...),
		Change: func(cmd *exec.Cmd) {
			// beyond the numbers that the worker's own take
			cmd.ExtraFiles = []*os.File{nil, nil, nil, nil, theirs, listening}
		}})
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	has := func(pid int, what string) bool {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		scene.Must(t, err)
		for _, link := range links {
			if to, _ := os.Readlink(link); to == what {
				return true
			}
		}
		return false
	}
	socket, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", listening.Fd()))
	scene.Must(t, err)
	for _, what := range []string{theirs.Name(), socket} {
		if !has(p.PID(), what) {
			t.Errorf("not even the front has %s: this look sees nothing", what)
		}
		if has(worker(t, p), what) {
			t.Errorf("the worker has %s", what)
		}
	}
	first, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", p.PID())) // go-plugin's pipe
	scene.Must(t, err)
	if has(worker(t, p), first) {
		t.Error("the worker has go-plugin's pipe, which then does not close with the front")
	}
}

// The identity lock is held by being open: a helper that a library forks, and that outlives it,
// must not keep the next server out. What the helper has open itself is its own business.
func TestAHelperOfTheLibrarysKeepsNothingOfTheWorkers(t *testing.T) {
	token := aToken(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	data := strings.Replace(token.PluginData(""), softhsm.Module(),
		filepath.Join(filepath.Dir(host.Binary(t)), "tests", "collide.so"), 1)
	p := start(t, token, "COLLIDE_MODULE="+softhsm.Module(), "COLLIDE_FORK="+pidFile)
	scene.Must(t, p.Configure(domain, data))
	helper := 0
	for patience := time.Now().Add(20 * time.Second); helper == 0; time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(pidFile)
		helper, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		if time.Now().After(patience) {
			t.Fatal("the helper's own descriptors were closed in it")
		}
	}
	t.Cleanup(func() { _ = syscall.Kill(helper, syscall.SIGKILL) })
	scene.Must(t, p.Close())
	scene.Must(t, start(t, token).Configure(domain, token.PluginData("")))
	scene.Must(t, syscall.Kill(helper, 0)) // it is there still
}

// Every library more is code beside the PIN: p11-kit's configuration names some on most systems.
func TestNoModuleIsLoadedButTheOneThatIsNamed(t *testing.T) {
	const trust = "p11-kit-trust.so"                 // comes with p11-kit, and is configured for every program
	named := []byte(filepath.Base(softhsm.Module())) // its path may be a link
	token := aToken(t)
	if listed := token.Run(t, "p11-kit", "list-modules"); !strings.Contains(listed, trust) {
		t.Skipf("p11-kit would load no other here:\n%s", listed)
	}
	p := start(t, token)
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", worker(t, p)))
	scene.Must(t, err)
	if !bytes.Contains(maps, named) || bytes.Contains(maps, []byte(trust)) {
		t.Errorf("the worker has loaded:\n%s", maps)
	}
	front, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID()))
	scene.Must(t, err)
	if bytes.Contains(front, named) {
		t.Error("the front has loaded the module")
	}
}

// Kubernetes makes the folders of its volumes writable for all, and mounts them read-only
// where a program says so: nobody replaces the module there.
func TestAFolderThatIsOpenToAllIsNoMatterOnAReadOnlyMount(t *testing.T) {
	needRoot(t)
	token := aToken(t)
	open, mounted := t.TempDir(), t.TempDir()
	module, err := os.ReadFile(softhsm.Module())
	scene.Must(t, err)
	scene.Must(t, os.WriteFile(filepath.Join(open, "module.so"), module, 0o644))
	scene.Must(t, os.Chmod(open, 0o777))
	if err := syscall.Mount(open, mounted, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mounted, syscall.MNT_DETACH) })
	scene.Must(t, syscall.Mount("", mounted, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	data := func(folder string) string {
		return strings.Replace(token.PluginData(""), softhsm.Module(), filepath.Join(folder, "module.so"), 1)
	}
	p := start(t, token)
	if err := p.Configure(domain, data(open)); err == nil || !strings.Contains(err.Error(), "could put another library there") {
		t.Errorf("%v", err)
	}
	scene.Must(t, p.Configure(domain, data(mounted)))
	scene.Must(t, p.Close()) // the worker has the file open
	for patience := time.Now().Add(time.Minute); syscall.Unmount(mounted, 0) == syscall.EBUSY; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatal("the worker does not let go of the module")
		}
	}
}

// status is a line of /proc/PID/status.
func status(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	scene.Must(t, err)
	for _, line := range strings.Split(string(text), "\n") {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in /proc/%d/status", name, pid)
	return ""
}

func TestTheWorkerGetsNoNewPrivilegesAndMakesFilesForItsOwnerAlone(t *testing.T) {
	token := aToken(t)
	p := start(t, token)
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	pid := worker(t, p)
	if got := status(t, pid, "NoNewPrivs"); got != "1" {
		t.Errorf("NoNewPrivs %s", got)
	}
	for name, pid := range map[string]int{"front": p.PID(), "worker": pid} {
		if got := status(t, pid, "Umask"); got != "0077" {
			t.Errorf("the %s has umask %s", name, got)
		}
	}
}
