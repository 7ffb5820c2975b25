// Package outages takes away what the plugin stands on, while it is at work: processes, the
// token, its room, its PIN, the disk the bundle goes to, its configuration. Each test says
// how many faults it injected, and its target: no failed call where a call can be repeated
// in its time, else the right error, nothing lost, and recovery unaided.
//
// SPIRE_HSM is the binary; FAULTY_SO the fault-injecting module, tests/faulty.so beside it
// if unset. LONG=1 is for the repetitions and waits that take minutes.
package outages

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
	"spire-hsm/peers/softhsm"
)

const (
	domain  = "example.org"
	p256    = keymanagerv1.KeyType_EC_P256
	rsa2048 = keymanagerv1.KeyType_RSA_2048
)

var (
	ctx  = context.Background()
	long = os.Getenv("LONG") != ""

	injected atomic.Int64
	survived atomic.Int64
)

func TestMain(m *testing.M) {
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for patience := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path+".new", []byte(text), 0o600))
	must(t, os.Rename(path+".new", path))
}

// ---- the plugin ----

// bench is a token and what a plugin is told to find it.
type bench struct {
	*softhsm.Token
	data    string   // plugin_data
	env     []string // of the plugin
	workers []int    // that were there at the plugins' ends
}

func newBench(t testing.TB, more string) *bench {
	t.Helper()
	token := softhsm.New(t)
	b := &bench{Token: token, data: token.PluginData(more), env: token.Env()}
	t.Cleanup(func() { // a worker may still be writing where all is to be removed
		for _, worker := range b.workers {
			eventually(t, "the worker goes after its front", func() bool { return gone(worker) })
		}
	})
	return b
}

// newFaulty has the fault-injecting module between the plugin and the token.
func newFaulty(t testing.TB, more, script string) *bench {
	t.Helper()
	module := os.Getenv("FAULTY_SO")
	if module == "" {
		module = filepath.Join(filepath.Dir(host.Binary(t)), "tests", "faulty.so")
	}
	if _, err := os.Stat(module); err != nil {
		t.Fatalf("FAULTY_SO must be the path of faulty.so: %v", err)
	}
	b := newBench(t, more)
	b.data = strings.Replace(b.data, softhsm.Module(), module, 1)
	b.env = append(b.env, "FAULTY_MODULE="+softhsm.Module(), "FAULTY_SCRIPT="+b.script())
	write(t, b.script(), script)
	return b
}

func (b *bench) script() string { return filepath.Join(b.Dir, "script") }

// fired counts the faults that came due, of any rule.
func (b *bench) fired(t testing.TB, function string) int {
	t.Helper()
	text, err := os.ReadFile(b.script() + ".fired")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(text), " "+function+"\n")
}

func (b *bench) start(t testing.TB) *host.Plugin {
	t.Helper()
	p := host.Start(t, host.Options{Type: "KeyManager", Env: b.env})
	t.Cleanup(func() { b.workers = append(b.workers, children(t, p.PID())...) })
	return p
}

func (b *bench) ready(t testing.TB) *host.Plugin {
	t.Helper()
	p := b.start(t)
	must(t, p.Configure(domain, b.data))
	return p
}

// unload is an orderly end, as at a restart of the server.
func unload(t testing.TB, p *host.Plugin) {
	t.Helper()
	must(t, p.Close())
}

func generate(p *host.Plugin, id string, keyType keymanagerv1.KeyType) (*keymanagerv1.PublicKey, error) {
	response, err := p.KeyManager().GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keyType})
	if err != nil {
		return nil, err
	}
	return response.PublicKey, nil
}

func mustGenerate(t testing.TB, p *host.Plugin, id string, keyType keymanagerv1.KeyType) *keymanagerv1.PublicKey {
	t.Helper()
	key, err := generate(p, id, keyType)
	if err != nil {
		t.Fatalf("GenerateKey %s: %v", id, err)
	}
	return key
}

// served keys by id.
func served(t testing.TB, p *host.Plugin) map[string]*keymanagerv1.PublicKey {
	t.Helper()
	response, err := p.KeyManager().GetPublicKeys(ctx, &keymanagerv1.GetPublicKeysRequest{})
	must(t, err)
	found := map[string]*keymanagerv1.PublicKey{}
	for _, key := range response.PublicKeys {
		found[key.Id] = key
	}
	return found
}

// sign a random digest and verify the signature with the key SPIRE was given.
func sign(p *host.Plugin, key *keymanagerv1.PublicKey) error {
	digest := make([]byte, sha256.Size)
	_, _ = rand.Read(digest)
	response, err := p.KeyManager().SignData(ctx, &keymanagerv1.SignDataRequest{KeyId: key.Id, Data: digest,
		SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm(crypto.SHA256)}})
	if err != nil {
		return err
	}
	if response.KeyFingerprint != key.Fingerprint {
		return fmt.Errorf("signed by key %s, not %s", response.KeyFingerprint, key.Fingerprint)
	}
	public, err := x509.ParsePKIXPublicKey(key.PkixData)
	if err != nil {
		return err
	}
	if public, ok := public.(*rsa.PublicKey); ok {
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest, response.Signature)
	}
	if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest, response.Signature) {
		return errors.New("the signature is wrong")
	}
	return nil
}

func mustSign(t testing.TB, p *host.Plugin, keys ...*keymanagerv1.PublicKey) {
	t.Helper()
	for _, key := range keys {
		if err := sign(p, key); err != nil {
			t.Fatalf("SignData %s: %v", key.Id, err)
		}
	}
}

func expect(t testing.TB, err error, code codes.Code, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
			t.Errorf("got %v; want %v with %q", err, code, text)
		}
	}
}

func countLogs(p *host.Plugin, message string) int {
	n := 0
	for _, line := range p.Logs.Lines() {
		if strings.Contains(line.Message, message) {
			n++
		}
	}
	return n
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

// ---- load ----

// load keeps callers signing, each signature verified, until it is ended.
type load struct {
	t      testing.TB
	stop   atomic.Bool
	group  sync.WaitGroup
	signed atomic.Int64
	made   atomic.Int64
	failed atomic.Int64
	mutex  sync.Mutex
	errors map[string]int
}

func startLoad(t testing.TB, p *host.Plugin, callers int, keys ...*keymanagerv1.PublicKey) *load {
	t.Helper()
	l := &load{t: t, errors: map[string]int{}}
	for i := range callers {
		key := keys[i%len(keys)]
		l.group.Go(func() {
			for !l.stop.Load() {
				if err := sign(p, key); err != nil {
					l.fail(err)
				} else {
					l.signed.Add(1)
				}
			}
		})
	}
	l.await(50)
	return l
}

// rotate overwrites one key id as fast as the token makes keys.
func (l *load) rotate(p *host.Plugin, id string) {
	l.group.Go(func() {
		for !l.stop.Load() {
			key, err := generate(p, id, p256)
			if err == nil {
				err = sign(p, key)
			}
			if err != nil {
				l.fail(fmt.Errorf("rotating %s: %w", id, err))
			} else {
				l.made.Add(1)
			}
		}
	})
}

func (l *load) fail(err error) {
	l.failed.Add(1)
	l.mutex.Lock()
	l.errors[err.Error()]++
	l.mutex.Unlock()
	time.Sleep(10 * time.Millisecond) // as SPIRE's callers have other things to do, too
}

// await that many more signatures.
func (l *load) await(more int64) {
	l.t.Helper()
	until := l.signed.Load() + more
	for patience := time.Now().Add(time.Minute); l.signed.Load() < until; time.Sleep(time.Millisecond) {
		if time.Now().After(patience) {
			l.t.Fatalf("no signature for a minute; failures so far: %v", l.failures())
		}
	}
}

func (l *load) failures() map[string]int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	failures := map[string]int{}
	for text, count := range l.errors {
		failures[text] = count
	}
	return failures
}

// end of it; says how it went.
func (l *load) end() {
	l.t.Helper()
	l.stop.Store(true)
	l.group.Wait()
	l.t.Logf("%d signatures, %d keys made, %d failed calls", l.signed.Load(), l.made.Load(), l.failed.Load())
}

// endWithoutFailures is the target wherever a call can be repeated in its time.
func (l *load) endWithoutFailures() {
	l.t.Helper()
	l.end()
	for text, count := range l.failures() {
		l.t.Errorf("%d x %s", count, text)
	}
}

// endFailing: all failures had this code, and some the text.
func (l *load) endFailing(code codes.Code, some string) {
	l.t.Helper()
	l.end()
	found := false
	for text, count := range l.failures() {
		l.t.Logf("%d x %s", count, text)
		if !strings.Contains(text, "code = "+code.String()) {
			l.t.Errorf("want only %v: %s", code, text)
		}
		found = found || strings.Contains(text, some)
	}
	if !found {
		l.t.Errorf("no call failed with %q", some)
	}
}

// ---- processes ----

// children of a process that it has not buried yet.
func children(t testing.TB, pid int) []int {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	must(t, err)
	var found []int
	for _, path := range threads {
		text, _ := os.ReadFile(path)
		for _, field := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(field)
			found = append(found, child)
		}
	}
	return found
}

// gone, or a zombie whose parent takes its time.
func gone(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return fields[0] == "Z" || fields[0] == "X"
}

func killWorkers(t testing.TB, p *host.Plugin) int {
	t.Helper()
	pids := children(t, p.PID())
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return len(pids)
}

// daemon is a program that runs until the test ends or kills it.
type daemon struct {
	*exec.Cmd
	done chan struct{}
}

func launch(t testing.TB, env []string, output *os.File, name string, args ...string) *daemon {
	t.Helper()
	d := &daemon{exec.Command(name, args...), make(chan struct{})}
	d.Env = append(os.Environ(), env...)
	d.Stdout, d.Stderr = output, output
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, d.Start())
	go func() {
		_ = d.Wait()
		close(d.done)
	}()
	t.Cleanup(d.kill)
	return d
}

func (d *daemon) kill() {
	_ = d.Process.Kill()
	<-d.done
}

// ---- disks ----

// mount a small tmpfs of so many kilobytes; for root alone.
func mount(t testing.TB, directory string, kilobytes int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	must(t, os.MkdirAll(directory, 0o700))
	must(t, syscall.Mount("tmpfs", directory, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=0700", kilobytes)))
	t.Cleanup(func() { _ = syscall.Unmount(directory, syscall.MNT_DETACH) })
}

func remount(t testing.TB, directory string, readOnly bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if readOnly {
		flags |= syscall.MS_RDONLY
	}
	must(t, syscall.Mount("", directory, "", flags, ""))
}

// fill a disk to the last byte; the file to remove.
func fill(t testing.TB, directory string) string {
	t.Helper()
	path := filepath.Join(directory, "filler")
	file, err := os.Create(path)
	must(t, err)
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
