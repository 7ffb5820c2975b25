package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// Of which each program is made, and libgrpc_unsecure after its kind.
const (
	system      = `ld-linux-.*\.so\.\d|libc\.so\.6|libm\.so\.6`
	p11kit      = `libp11-kit\.so\.0|libffi\.so\.\d`
	ofGRPC      = `libgrpc_unsecure\.so\.\d+|libgpr\.so\.\d+|libupb\.so\.\d+|libaddress_sorting\.so\.\d+|libcares\.so\.2|libz\.so\.1|libre2\.so\.\d+|libabsl_\w+\.so\.\d+|libstdc\+\+\.so\.6|libgcc_s\.so\.1`
	itsOwn      = `spire-hsm|memfd:spire-hsm-page`
	ofTheFront  = system + "|" + p11kit + "|" + ofGRPC + `|libprotobuf-c\.so\.1|libjansson\.so\.4|libcrypto\.so\.3|` + itsOwn
	ofTheWorker = system + "|" + p11kit + `|spire-hsm-worker|memfd:spire-hsm-page`
)

var (
	version = regexp.MustCompile(`(\.so(?:\.\d+)?)[.\d]*$`)
	library = regexp.MustCompile(`\S+\.so[.\d]*`)
)

// soname as far as we name it: libz.so.1.2.13 is libz.so.1.
func soname(path string) string {
	return version.ReplaceAllString(filepath.Base(path), "$1")
}

// mapped files of a process, by base name.
func mapped(t testing.TB, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	scene.Must(t, err)
	files := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Fields(line); len(fields) > 5 && strings.HasPrefix(fields[5], "/") {
			files[soname(fields[5])] = fields[5]
		}
	}
	if len(files) == 0 {
		t.Fatalf("nothing at all is mapped in %d:\n%s", pid, text)
	}
	return files
}

// onlyMapped: every file in the process is on the list.
func onlyMapped(t testing.TB, who string, pid int, list string, more ...string) {
	t.Helper()
	allowed := regexp.MustCompile("^(?:" + list + ")$")
	also := map[string]bool{}
	for _, path := range more {
		also[soname(path)] = true
	}
	for name, path := range mapped(t, pid) {
		if !allowed.MatchString(name) && !also[name] {
			t.Errorf("the %s has mapped %s", who, path)
		}
	}
}

// closure is a module and all it is linked with.
func closure(t testing.TB, module string) []string {
	t.Helper()
	target, err := filepath.EvalSymlinks(module)
	scene.Must(t, err)
	output, err := exec.Command("ldd", module).CombinedOutput()
	scene.Must(t, err)
	return append(library.FindAllString(string(output), -1), module, target)
}

func TestEachProcessMapsOnlyTheLibrariesOnAList(t *testing.T) {
	needRoot(t)
	unsanitized(t)
	token := softhsm.New(t)
	p := start(t, token.Env()...)
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	scene.Sign(t, p, scene.Generate(t, p, "ec", p256), scene.Generate(t, p, "rsa", rsa2048))
	onlyMapped(t, "front", p.PID(), ofTheFront)
	onlyMapped(t, "worker", worker(t, p), ofTheWorker, closure(t, softhsm.Module())...)

	for _, kind := range []string{"BundlePublisher", "Notifier"} {
		press := newPress(t)
		plugin := press.start(t, kind)
		press.publish(t, plugin, kind)
		onlyMapped(t, kind, plugin.PID(), ofTheFront)
		if workers := plugin.Workers(); len(workers) != 0 {
			t.Errorf("the %s has workers %v", kind, workers)
		}
	}
}

func TestTheWorkerOfAModuleThatNeedsNoOpenSSLHasNone(t *testing.T) {
	needRoot(t)
	unsanitized(t)
	r := newRemote(t)
	p := start(t, r.env...)
	scene.Must(t, p.Configure(scene.Domain, r.data()))
	scene.Sign(t, p, scene.Generate(t, p, "ec", p256))
	onlyMapped(t, "worker", worker(t, p), ofTheWorker, "p11-kit-client.so")
}

func TestACommandThatWaitsForAModuleHasItNotInItself(t *testing.T) {
	needRoot(t)
	unsanitized(t)
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	module.Play(t, "C_Initialize before hang")
	c := runs(t, token, module.In(token.PluginData("")), append(token.Env(), module.Env()...), "check")
	scene.Eventually(t, "the module hangs", func() bool { return len(module.Fired(t)) > 0 })
	onlyMapped(t, "command", c.Process.Pid, ofTheFront)
	workers := host.Children(c.Process.Pid)
	if len(workers) != 1 || mapped(t, workers[0])["faulty.so"] == "" {
		t.Errorf("the workers %v of the command have no module", workers)
	}
	for _, pid := range workers { // which would wait for its module once the command has gone
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	c.ends(t, 1, "MISSING  token", "signal 9")
}

func TestTheWorkerExportsNothing(t *testing.T) {
	unsanitized(t)
	output, err := exec.Command("nm", "-D", "--defined-only", workerOf(host.Binary(t))).Output()
	scene.Must(t, err)
	if len(output) != 0 {
		t.Errorf("exported:\n%s", output)
	}
}

// ---- a module with names that our libraries have, too ----

func collide(t testing.TB) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(host.Binary(t)), "tests", "collide.so")
	_, err := os.Stat(path)
	scene.Must(t, err)
	return path
}

func colliding(t testing.TB, token *softhsm.Token) (data string, env []string) {
	t.Helper()
	return strings.Replace(token.PluginData(""), softhsm.Module(), collide(t), 1),
		append(token.Env(), "COLLIDE_MODULE="+softhsm.Module())
}

func TestAModuleWithOurLibrariesNamesCallsItsOwn(t *testing.T) {
	token := softhsm.New(t)
	data, env := colliding(t, token)
	p := start(t, env...)
	scene.Must(t, p.Configure(scene.Domain, data))
	scene.Sign(t, p, scene.Generate(t, p, "ec", p256), scene.Generate(t, p, "rsa", rsa2048))
	scene.Sign(t, p, scene.Generate(t, p, "ec", p256)) // and the old one goes
	p.Logs.Wait(t, "superseded key destroyed")
	scene.Must(t, p.Close())
	runs(t, token, data, env, "check", "--all").ends(t, 0, content)
	if left := token.Labels(t); len(left) != 2 {
		t.Errorf("on the token: %v", left)
	}
}
