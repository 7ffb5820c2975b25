// Package scene sets it for tests of a KeyManager: the plugin as it is told to find its token, keys
// and callers, programs beside it, and patience. What goes wrong with any of it ends the test.
package scene

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
)

// Domain is the trust domain of the server.
const Domain = "example.org"

// Must end the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually it holds, within a minute.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for patience := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// Listens says whether a process listens on this unix socket, which is there a little before: then
// who connects is refused.
func Listens(socket string) bool {
	const listening = "00010000" // __SO_ACCEPTCON
	table, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) == 8 && fields[3] == listening && fields[7] == socket {
			return true
		}
	}
	return false
}

// Write a file for its owner alone; whoever reads it sees all of it or what was there before.
func Write(t testing.TB, path, text string) {
	t.Helper()
	Must(t, os.WriteFile(path+".new", []byte(text), 0o600))
	Must(t, os.Rename(path+".new", path))
}

// ---- the plugin ----

// Setting is what the plugin is told.
type Setting struct {
	Data    string   // plugin_data
	Environ []string // beside this process's own
}

// Start the plugin for the length of the test.
func (s *Setting) Start(t testing.TB) *host.Plugin {
	t.Helper()
	return host.Start(t, host.Options{Type: "KeyManager", Env: s.Environ})
}

// Ready is started and configured.
func (s *Setting) Ready(t testing.TB) *host.Plugin {
	t.Helper()
	p := s.Start(t)
	Must(t, p.Configure(Domain, s.Data))
	return p
}

// Busy is ready and at work.
func (s *Setting) Busy(t testing.TB, callers int) (*host.Plugin, *keymanagerv1.PublicKey, *load.Load) {
	t.Helper()
	p := s.Ready(t)
	key, l := Work(t, p, callers)
	return p, key, l
}

// Work for a plugin: so many callers sign with a new key, x509-CA-A.
func Work(t testing.TB, p *host.Plugin, callers int) (*keymanagerv1.PublicKey, *load.Load) {
	t.Helper()
	key := Generate(t, p, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
	return key, load.Start(t, p, callers, key)
}

// Generate a key.
func Generate(t testing.TB, p *host.Plugin, id string, keyType keymanagerv1.KeyType) *keymanagerv1.PublicKey {
	t.Helper()
	key, err := load.Generate(p, id, keyType)
	if err != nil {
		t.Fatalf("GenerateKey %s: %v", id, err)
	}
	return key
}

// Sign once with each key.
func Sign(t testing.TB, p *host.Plugin, keys ...*keymanagerv1.PublicKey) {
	t.Helper()
	for _, key := range keys {
		if err := load.Sign(p, key); err != nil {
			t.Fatalf("SignData %s: %v", key.Id, err)
		}
	}
}

// ---- programs beside it ----

// Daemon is a program that runs until the test ends or kills it.
type Daemon struct {
	*exec.Cmd
	Done chan struct{} // closed when it has ended
}

// Launch a daemon. What it says goes to output; if that is nil, a failed test tells it.
func Launch(t testing.TB, env []string, output *os.File, name string, args ...string) *Daemon {
	t.Helper()
	d := &Daemon{exec.Command(name, args...), make(chan struct{})}
	d.Env = append(os.Environ(), env...)
	if output == nil {
		output = told(t, name)
	}
	d.Stdout, d.Stderr = output, output
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	Must(t, d.Start())
	go func() {
		_ = d.Wait()
		close(d.Done)
	}()
	t.Cleanup(d.Kill)
	return d
}

// told is a file of which the test tells when it has failed.
func told(t testing.TB, name string) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "output"))
	Must(t, err)
	t.Cleanup(func() {
		_ = file.Close()
		if text, _ := os.ReadFile(file.Name()); t.Failed() {
			t.Logf("%s: %s", name, text)
		}
	})
	return file
}

// Kill it, and wait for its end.
func (d *Daemon) Kill() {
	_ = d.Process.Kill()
	<-d.Done
}
