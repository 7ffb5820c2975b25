package outages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// newValued is told who it is by a value.
func newValued(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, "")
	b.takeValue()
	return b
}

func (b *bench) takeValue() {
	file := fmt.Sprintf("key_identifier_file = %q", filepath.Join(b.Dir, "hsm-id"))
	b.Data = strings.Replace(b.Data, file, `key_identifier_value = "server-1"`, 1)
}

// on a host: one with a /dev/shm of that name, where nobody else of this test machine looks.
func (b *bench) on(t *testing.T, name string) *host.Plugin {
	t.Helper()
	memory := filepath.Join(b.Dir, name)
	scene.Must(t, os.MkdirAll(memory, 0o700))
	return host.Start(t, host.Options{Type: "KeyManager", Env: b.Environ, Change: func(cmd *exec.Cmd) {
		unshare, err := exec.LookPath("unshare")
		scene.Must(t, err)
		cmd.Args = []string{unshare, "--mount", "sh", "-c", `mount --bind "$1" /dev/shm && exec "$0"`, cmd.Path, memory}
		cmd.Path = unshare
	}})
}

func (b *bench) readyOn(t *testing.T, name string) *host.Plugin {
	t.Helper()
	p := b.on(t, name)
	scene.Must(t, p.Configure(domain, b.Data))
	return p
}

func TestASecondServerWithTheSameValueIsRefusedOnTheSameHost(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newValued(t)
	first := b.readyOn(t, "host")
	key, l := scene.Work(t, first, 4)
	second := b.on(t, "host")
	expect(t, second.Configure(domain, b.Data), codes.FailedPrecondition, "in use by another process", "one identity")
	l.EndWithoutFailures()
	scene.Must(t, first.Configure(domain, b.Data+"max_sessions = 2\n")) // which is no second server
	scene.Sign(t, first, key)
	unload(t, first)
	scene.Must(t, second.Configure(domain, b.Data))
	scene.Sign(t, second, key)
}

// No lock reaches over hosts. What is left is to see the other's keys, and to leave them alone.
func TestServersWithTheSameValueOnTwoHostsDestroyNothingOfEachOthers(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newValued(t)
	first := b.readyOn(t, "one")
	x509, jwt := scene.Generate(t, first, "x509-CA-A", p256), scene.Generate(t, first, "JWT-Signer-A", p256)
	l := load.Start(t, first, 4, x509, jwt)

	second := b.readyOn(t, "two")
	scene.Sign(t, second, x509, jwt) // the newest there are: it cannot know better
	others := scene.Generate(t, second, "x509-CA-A", p256)
	for range 3 { // its own ones go when they are superseded
		others = scene.Generate(t, second, "x509-CA-A", p256)
	}
	othersJWT := scene.Generate(t, second, "JWT-Signer-A", p256)
	b.expectPairs(t, 4)
	second.Logs.Wait(t, "superseded key stays for spire-hsm prune")

	scene.Generate(t, first, "x509-CA-B", p256) // a CA that cannot rotate expires
	l.Await(50)
	l.EndWithoutFailures()

	unload(t, first)
	first = b.readyOn(t, "one")
	scene.Sign(t, first, others, othersJWT)
	scene.Generate(t, first, "x509-CA-A", p256)
	scene.Sign(t, second, others, othersJWT)
	b.expectPairs(t, 4) // what it had made itself before has gone
}

func TestCrashLoopsWithAValueDoNotFillTheToken(t *testing.T) {
	t.Parallel()
	rounds := either(8, 50)
	faults(t, rounds)
	b := newValued(t)
	for i := range rounds {
		p := b.readyOn(t, "host")
		scene.Generate(t, p, "x509-CA-A", p256)
		scene.Generate(t, p, "JWT-Signer-A", p256)
		if i%2 == 0 {
			p.Kill()
			scene.Eventually(t, "it is gone", p.Exited)
		}
		unload(t, p)
	}
	p := b.readyOn(t, "host")
	b.expectPairs(t, 2)
	unload(t, p)

	// on a host that knows nothing of them, old keys stay
	p = b.readyOn(t, "another")
	key := scene.Generate(t, p, "x509-CA-A", p256)
	scene.Sign(t, p, key)
	unload(t, p)
	p = b.readyOn(t, "another")
	if line := p.Logs.Wait(t, "token opened"); line.Fields["older_keys"] != "1" {
		t.Errorf("said: %v", line)
	}
	b.expectPairs(t, 3)
}
