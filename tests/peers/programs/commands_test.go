package programs

import (
	"strings"
	"syscall"
	"testing"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// broken is a token with a key of a server, behind a module that plays a script.
func broken(t *testing.T, format string, args ...any) (*softhsm.Token, *faulty.Module, func(name string, options ...string) *command) {
	t.Helper()
	token := softhsm.New(t)
	p := start(t, token.Env()...)
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	_ = scene.Generate(t, p, "ec", p256)
	scene.Must(t, p.Close())
	module := faulty.Wrap(t, token)
	module.Play(t, format, args...)
	return token, module, func(name string, options ...string) *command {
		return runs(t, token, module.In(token.PluginData("generate_timeout = \"10s\"\noperation_timeout = \"1s\"\n")),
			append(token.Env(), module.Env()...), name, options...)
	}
}

// once: a sentence is said, and not again and again.
func once(t testing.TB, output, text string) {
	t.Helper()
	if got := strings.Count(output, text); got != 1 {
		t.Errorf("%q stands there %d times:\n%s", text, got, output)
	}
}

func TestCommandsOutliveAModuleThatCrashesAtTheLogin(t *testing.T) {
	_, _, run := broken(t, "C_Login after abort")
	const its, ours = "internal error, giving up", "worker ended: signal 6 (Aborted)"
	once(t, run("check").ends(t, 1, "MISSING  token", ours, its), ours)
	once(t, run("keys").ends(t, 2, ours, its), ours)
	once(t, run("prune").ends(t, 2, ours, its), ours)
}

func TestCommandsOutliveAModuleThatCrashesAtASignature(t *testing.T) {
	token, module, run := broken(t, "C_Sign before abort")
	run("check").ends(t, 1, "MISSING  trial ec-p256", "ended in the middle of it", "signal 6")
	run("keys").ends(t, 0, "unknown", "PKCS#11 workers in a row ended while executing it")
	run("prune", "--yes").ends(t, 0)
	module.Play(t, "")
	run("check").ends(t, 0, content)
	if left := token.Labels(t); len(left) != 1 {
		t.Errorf("on the token: %v", left)
	}
}

func TestCommandsEndWhenTheModuleHangsInASearch(t *testing.T) {
	t.Parallel() // three times the 10 s that a search may take at the least
	var commands []*command
	for _, args := range [][]string{{"check", "--no-trial"}, {"keys"}, {"prune"}} {
		_, _, run := broken(t, "C_FindObjects before hang")
		commands = append(commands, run(args[0], args[1:]...))
	}
	commands[0].ends(t, 1, "MISSING  objects", "hangs")
	commands[1].ends(t, 2, "cannot list the keys", "hangs")
	commands[2].ends(t, 2, "cannot list the keys", "hangs")
}

// What a command has begun ends with it, be it by Ctrl-C or SIGKILL.
func TestAWorkerDoesNotOutliveItsCommand(t *testing.T) {
	_, module, run := broken(t, "C_Login before sleep 500")
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		module.Play(t, "C_Login before sleep 500")
		c := run("keys")
		scene.Eventually(t, "the module logs in", func() bool { return len(module.Fired(t)) > 0 })
		workers := host.Children(c.Process.Pid)
		scene.Must(t, c.Process.Signal(signal))
		<-c.done
		if len(workers) != 1 {
			t.Fatalf("workers: %v", workers)
		}
		scene.Eventually(t, "its worker is gone", func() bool { return host.Gone(workers[0]) })
	}
}
