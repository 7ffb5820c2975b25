// Package programs looks at spire-hsm and spire-hsm-worker as two programs on a host that has
// habits of its own: which libraries are in which process, what an openssl.cnf, a module with
// colliding names or a helper that outlives its parent does to them, and what becomes of them
// when somebody replaces, strips or forgets one of the two files.
package programs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	notifierv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const (
	p256    = keymanagerv1.KeyType_EC_P256
	rsa2048 = keymanagerv1.KeyType_RSA_2048
)

var ctx = context.Background()

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may look into these processes, or mount")
	}
}

// unsanitized: a sanitizer is a library more, and keeps the worker's names.
func unsanitized(t *testing.T) {
	t.Helper()
	program, err := elf.Open(host.Binary(t))
	scene.Must(t, err)
	defer program.Close()
	libraries, err := program.ImportedLibraries()
	scene.Must(t, err)
	for _, name := range libraries {
		if strings.HasPrefix(name, "libasan") || strings.HasPrefix(name, "libtsan") {
			t.Skip("this binary has a sanitizer in it")
		}
	}
}

// ---- the plugin ----

func start(t testing.TB, env ...string) *host.Plugin {
	t.Helper()
	return host.Start(t, host.Options{Type: "KeyManager", Env: env})
}

func expect(t testing.TB, err error, code codes.Code, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if status.Code(err) != code || !strings.Contains(err.Error(), text) {
			t.Errorf("want %v with %q, got %v", code, text, err)
		}
	}
}

// worker is the one that is there.
func worker(t testing.TB, p *host.Plugin) (pid int) {
	t.Helper()
	scene.Eventually(t, "one worker", func() bool {
		all := p.Workers()
		if len(all) == 1 {
			pid = all[0]
		}
		return len(all) == 1 && !host.Gone(pid)
	})
	return pid
}

// killWorker, and wait until its successor has taken its place.
func killWorker(t testing.TB, p *host.Plugin) {
	t.Helper()
	old := worker(t, p)
	scene.Must(t, syscall.Kill(old, syscall.SIGKILL))
	scene.Eventually(t, "another worker", func() bool {
		all := p.Workers()
		return len(all) == 1 && all[0] != old
	})
}

// canonical: SPIRE compares the bytes with Go's own encoding of the key.
func canonical(t testing.TB, key *keymanagerv1.PublicKey) {
	t.Helper()
	public, err := x509.ParsePKIXPublicKey(key.PkixData)
	scene.Must(t, err)
	again, err := x509.MarshalPKIXPublicKey(public)
	scene.Must(t, err)
	if !bytes.Equal(again, key.PkixData) {
		t.Errorf("%s: %x is not the canonical %x", key.Id, key.PkixData, again)
	}
}

// ---- commands ----

// command is a spire-hsm that runs beside the test.
type command struct {
	*exec.Cmd
	output bytes.Buffer
	done   chan struct{}
}

func runs(t testing.TB, token *softhsm.Token, data string, env []string, name string, options ...string) *command {
	t.Helper()
	config := filepath.Join(token.Dir, "plugin_data")
	scene.Must(t, os.WriteFile(config, []byte(data), 0o600))
	c := &command{Cmd: exec.Command(host.Binary(t), append([]string{name, "--config", config,
		"--trust-domain", scene.Domain}, options...)...), done: make(chan struct{})}
	c.Env = append(os.Environ(), env...)
	c.Stdout, c.Stderr = &c.output, &c.output
	scene.Must(t, c.Start())
	go func() {
		_ = c.Wait()
		close(c.done)
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-c.done
	})
	return c
}

// ends with this exit status; what it said.
func (c *command) ends(t testing.TB, exit int, says ...string) string {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%v does not end", c.Args)
	}
	if got := c.ProcessState.ExitCode(); got != exit {
		t.Errorf("%s ends with %v, not %d:\n%s", c.Args[1], c.ProcessState, exit, &c.output)
	}
	for _, text := range says {
		if !strings.Contains(c.output.String(), text) {
			t.Errorf("%s does not say %q:\n%s", c.Args[1], text, &c.output)
		}
	}
	return c.output.String()
}

const content = "the token has all that SPIRE needs"

// ---- a bundle ----

type press struct {
	path   string
	bundle *types.Bundle
}

func newPress(t testing.TB) *press {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	scene.Must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: scene.Domain}}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	scene.Must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	scene.Must(t, err)
	return &press{path: filepath.Join(t.TempDir(), "bundle.json"), bundle: &types.Bundle{
		TrustDomain: scene.Domain, RefreshHint: 300, X509Authorities: []*types.X509Certificate{{Asn1: certificate}},
		JwtAuthorities: []*types.JWTKey{{KeyId: "jwt", PublicKey: spki, ExpiresAt: 4102444800}}}}
}

func (p *press) start(t testing.TB, kind string, env ...string) *host.Plugin {
	t.Helper()
	plugin := host.Start(t, host.Options{Type: kind, Env: env})
	scene.Must(t, plugin.Configure(scene.Domain, fmt.Sprintf("path = %q\n", p.path)))
	return plugin
}

// publish the next edition by a BundlePublisher or a Notifier, and find it in the file.
func (p *press) publish(t testing.TB, plugin *host.Plugin, kind string) {
	t.Helper()
	var err error
	p.bundle.SequenceNumber++
	if kind == "Notifier" {
		_, err = plugin.Notifier().NotifyAndAdvise(ctx, &notifierv1.NotifyAndAdviseRequest{
			Event: &notifierv1.NotifyAndAdviseRequest_BundleLoaded{BundleLoaded: &notifierv1.BundleLoaded{Bundle: p.bundle}}})
	} else {
		_, err = plugin.BundlePublisher().PublishBundle(ctx, &bundlepublisherv1.PublishBundleRequest{Bundle: p.bundle})
	}
	scene.Must(t, err)
	text, err := os.ReadFile(p.path)
	scene.Must(t, err)
	if number := fmt.Sprintf(`"spiffe_sequence":%d`, p.bundle.SequenceNumber); !strings.Contains(strings.ReplaceAll(string(text), ": ", ":"), number) {
		t.Errorf("%s has not published edition %d:\n%s", kind, p.bundle.SequenceNumber, text)
	}
}

// ---- files ----

// workerOf the program at this path.
func workerOf(program string) string { return program + "-worker" }

func hexDigest(text []byte) string { return fmt.Sprintf("%x", sha256.Sum256(text)) }

// replace a file as installers do: by rename.
func replace(t testing.TB, path string, text []byte, mode os.FileMode) {
	t.Helper()
	scene.Must(t, os.WriteFile(path+".new", text, mode))
	scene.Must(t, os.Rename(path+".new", path))
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	scene.Must(t, err)
	return text
}

// ---- other processes ----

// find one path among several patterns, or skip.
func find(t testing.TB, patterns ...string) string {
	t.Helper()
	for _, pattern := range patterns {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	t.Skipf("there is no %v here", patterns)
	return ""
}

// remote is a token behind `p11-kit server`, and the module that reaches it.
type remote struct {
	*softhsm.Token
	env []string
}

func newRemote(t testing.TB) *remote {
	t.Helper()
	module := find(t, "/usr/lib/*/pkcs11/p11-kit-client.so", "/usr/lib*/pkcs11/p11-kit-client.so")
	token := softhsm.New(t)
	folder, err := os.MkdirTemp("", "programs") // a socket's path has 108 bytes
	scene.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	socket := filepath.Join(folder, "hsm")
	server := exec.Command("p11-kit", "server", "-f", "-n", socket, "--provider", softhsm.Module(), "pkcs11:token="+token.Label)
	server.Env = append(os.Environ(), token.Env()...)
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	scene.Must(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	scene.Eventually(t, "p11-kit server listens", func() bool { return scene.Listens(socket) })
	return &remote{token, []string{"P11_KIT_SERVER_ADDRESS=unix:path=" + socket, "SOFTHSM2_CONF=/nonexistent", "CLIENT=" + module}}
}

// data of a KeyManager that reaches it.
func (r *remote) data() string {
	module := strings.TrimPrefix(r.env[2], "CLIENT=")
	return strings.Replace(r.PluginData(""), softhsm.Module(), module, 1)
}
