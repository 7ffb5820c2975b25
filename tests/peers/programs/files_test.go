package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// installed is a pair of programs in a folder of its own.
type installed struct {
	program, worker string
	right           []byte // the worker as it was built
}

func install(t testing.TB) *installed {
	t.Helper()
	program := host.Install(t, t.TempDir())
	return &installed{program, workerOf(program), read(t, workerOf(program))}
}

func (i *installed) start(t testing.TB, env []string) *host.Plugin {
	t.Helper()
	return host.Start(t, host.Options{Path: i.program, Type: "KeyManager", Env: env})
}

func (i *installed) heal(t testing.TB) {
	t.Helper()
	replace(t, i.worker, i.right, 0o755)
}

// mountOver the worker itself, as it is, with flags.
func (i *installed) mountOver(t testing.TB, flags uintptr) {
	t.Helper()
	needRoot(t.(*testing.T))
	if err := syscall.Mount(i.worker, i.worker, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(i.worker, syscall.MNT_DETACH) })
	scene.Must(t, syscall.Mount("", i.worker, "", syscall.MS_BIND|syscall.MS_REMOUNT|flags, ""))
}

const otherBuild = "install both programs from one build, unstripped and unchanged"

var spoilt = []struct {
	name  string
	spoil func(testing.TB, *installed)
	says  []string
	heal  func(testing.TB, *installed) // nil: the right file in its place
}{
	{"it is missing",
		func(t testing.TB, i *installed) { scene.Must(t, os.Remove(i.worker)) },
		[]string{"cannot open the worker's program", "No such file", "it must be beside spire-hsm and come from the same build"}, nil},
	{"it is of another build",
		func(t testing.TB, i *installed) {
			replace(t, i.worker, append(i.right[:len(i.right):len(i.right)], 0), 0o755)
		},
		[]string{"is not the worker that this spire-hsm was built with", otherBuild}, nil},
	{"it is empty",
		func(t testing.TB, i *installed) { replace(t, i.worker, nil, 0o755) },
		[]string{"is not the worker that this spire-hsm was built with", otherBuild}, nil},
	{"it is a directory",
		func(t testing.TB, i *installed) {
			scene.Must(t, os.Remove(i.worker))
			scene.Must(t, os.Mkdir(i.worker, 0o755))
		},
		[]string{"is not a file; it must come from the same build as spire-hsm"},
		func(t testing.TB, i *installed) { scene.Must(t, os.Remove(i.worker)); i.heal(t) }},
	{"it was stripped afterwards",
		func(t testing.TB, i *installed) {
			output, err := exec.Command("objcopy", "--strip-all", "--remove-section=.gnu_debuglink", i.worker).CombinedOutput()
			if err != nil {
				t.Fatalf("objcopy: %v\n%s", err, output)
			}
		},
		[]string{"is not the worker that this spire-hsm was built with", otherBuild}, nil},
	{"it is not executable",
		func(t testing.TB, i *installed) { scene.Must(t, os.Chmod(i.worker, 0o644)) },
		[]string{"is not executable (mode 0644): chmod 755 it"},
		func(t testing.TB, i *installed) { scene.Must(t, os.Chmod(i.worker, 0o755)) }},
	{"it is not executable, and then installed anew",
		func(t testing.TB, i *installed) { scene.Must(t, os.Chmod(i.worker, 0o644)) },
		[]string{"is not executable (mode 0644): chmod 755 it"}, nil},
	{"it is where nothing may be executed",
		func(t testing.TB, i *installed) { i.mountOver(t, syscall.MS_NOEXEC) },
		[]string{"mounted noexec", "install both programs elsewhere, or mount with exec"},
		func(t testing.TB, i *installed) { scene.Must(t, syscall.Unmount(i.worker, syscall.MNT_DETACH)) }},
}

func TestAWorkerThatCannotBeStartedIsToldInOneSentence(t *testing.T) {
	token := softhsm.New(t)
	for _, s := range spoilt {
		t.Run(s.name, func(t *testing.T) {
			i := install(t)
			s.spoil(t, i)
			p := i.start(t, token.Env())
			err := p.Configure(scene.Domain, token.PluginData(""))
			expect(t, err, codes.FailedPrecondition, append(s.says, i.worker)...)
			if s.says[len(s.says)-1] == otherBuild {
				expect(t, err, codes.FailedPrecondition, hexDigest(read(t, i.worker)), hexDigest(i.right))
			}
			if said := lines(p, i.worker); len(said) > 1 {
				t.Errorf("the log says it %d times: %v", len(said), said)
			}
			if s.heal == nil {
				i.heal(t)
			} else {
				s.heal(t, i)
			}
			scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
			scene.Sign(t, p, scene.Generate(t, p, "ec", p256))
		})
	}
}

// lines of the log that name a file.
func lines(p *host.Plugin, text string) (found []host.Line) {
	for _, line := range p.Logs.Lines() {
		if strings.HasSuffix(line.Logger, "spire-hsm") && strings.Contains(line.String(), text+" ") {
			found = append(found, line)
		}
	}
	return found
}

// withoutWorker does something while the worker is dead and the front has not seen it: only
// then is the file not busy.
func withoutWorker(t testing.TB, p *host.Plugin, do func()) {
	t.Helper()
	pid := worker(t, p)
	scene.Must(t, p.Signal(syscall.SIGSTOP))
	defer func() { scene.Must(t, p.Signal(syscall.SIGCONT)) }()
	scene.Must(t, syscall.Kill(pid, syscall.SIGKILL))
	scene.Eventually(t, "the worker is dead", func() bool { return host.Gone(pid) })
	do()
}

// write a file in place, as `cp` over it does.
func writeInPlace(t testing.TB, path string, text []byte) {
	t.Helper()
	var file *os.File
	scene.Eventually(t, "the file is not busy", func() bool { // the last thread of it takes its time
		var err error
		file, err = os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		return err == nil
	})
	_, err := file.Write(text)
	scene.Must(t, err)
	scene.Must(t, file.Close())
}

func TestAWorkerThatIsChangedInPlaceIsNotStartedUntilTheRightOneIsBack(t *testing.T) {
	t.Parallel() // each start that fails waits longer for the next
	token := softhsm.New(t)
	i := install(t)
	p := i.start(t, token.Env())
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("call_timeout = \"1s\"\n")))
	key := scene.Generate(t, p, "ec", p256)
	wrong := append([]byte{}, i.right...)
	wrong[len(wrong)/2] ^= 1
	withoutWorker(t, p, func() { writeInPlace(t, i.worker, wrong) })

	expect(t, load.Sign(p, key), codes.Unavailable, i.worker, "is not the worker that this spire-hsm was built with", otherBuild)
	if workers := p.Workers(); len(workers) != 0 {
		t.Errorf("it was started: %v", workers)
	}
	if said := p.Logs.Wait(t, i.worker+" is not the worker"); len(lines(p, i.worker)) != 1 {
		t.Errorf("said %d times: %v", len(lines(p, i.worker)), said)
	}
	for _, heal := range []func(){
		func() { writeInPlace(t, i.worker, i.right) },
		func() { i.heal(t) },
	} {
		heal()
		scene.Eventually(t, "it signs again", func() bool { return load.Sign(p, key) == nil })
		withoutWorker(t, p, func() { writeInPlace(t, i.worker, wrong) })
		expect(t, load.Sign(p, key), codes.Unavailable, i.worker)
	}
	i.heal(t)
	scene.Eventually(t, "it signs again", func() bool { return load.Sign(p, key) == nil })
}

// What is started is what was opened, not what lies at the path by now.
func TestAnUpgradeBesideALiveServerChangesNothing(t *testing.T) {
	token := softhsm.New(t)
	i := install(t)
	sha := hexDigest(i.right)
	p := i.start(t, token.Env())
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	l := load.Rush(t, p, 4, scene.Generate(t, p, "ec", p256), scene.Generate(t, p, "rsa", rsa2048))
	front := read(t, i.program)
	for round, next := range [][2][]byte{
		{[]byte("#!/bin/false\n"), []byte("#!/bin/false\n")},
		{append(front[:len(front):len(front)], 0), append(i.right[:len(i.right):len(i.right)], 0)},
		{nil, nil}, // and gone altogether
	} {
		for n, path := range []string{i.program, i.worker} {
			if round == 2 {
				scene.Must(t, os.Remove(path))
			} else {
				replace(t, path, next[n], 0o755)
			}
		}
		l.KillWorkers(2, 20)
		pid := worker(t, p)
		if os.Geteuid() != 0 {
			continue
		}
		exe := fmt.Sprintf("/proc/%d/exe", pid)
		if to, err := os.Readlink(exe); err != nil || filepath.Base(to) != "spire-hsm-worker (deleted)" || hexDigest(read(t, exe)) != sha {
			t.Errorf("round %d: the worker is %s (%v)", round, to, err)
		}
	}
	l.EndWithoutFailures()
	if n := len(lines(p, i.worker)); n != 0 {
		t.Errorf("%d lines of the log complain", n)
	}
	scene.Must(t, p.Close())
}
