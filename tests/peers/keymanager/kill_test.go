package keymanager_test

import (
	"crypto"
	"fmt"
	"os"
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

	"spire-hsm/peers/host"
	"spire-hsm/peers/softhsm"
)

// workers are the processes the front has started and not yet buried.
func workers(t testing.TB, p *host.Plugin) []int {
	t.Helper()
	var pids []int
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range threads {
		text, _ := os.ReadFile(path)
		for _, field := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(field)
			pids = append(pids, pid)
		}
	}
	return pids
}

// load keeps a number of callers signing, each signature verified, until stopped.
type load struct {
	t      testing.TB
	stop   atomic.Bool
	group  sync.WaitGroup
	signed atomic.Int64
	failed atomic.Int64
}

func startLoad(t testing.TB, p *host.Plugin, callers int, keys ...*keymanagerv1.PublicKey) *load {
	l := &load{t: t}
	for i := range callers {
		key := keys[i%len(keys)]
		l.group.Go(func() {
			for !l.stop.Load() {
				request := plain(key.Id, crypto.SHA256, digest(crypto.SHA256))
				response, err := p.KeyManager().SignData(ctx, request)
				if err == nil {
					err = verify(key, request, response)
				}
				if err != nil {
					l.failed.Add(1)
					t.Errorf("signature failed: %v", err)
					return
				}
				l.signed.Add(1)
			}
		})
	}
	return l
}

// await that many more signatures.
func (l *load) await(more int64) {
	l.t.Helper()
	until := l.signed.Load() + more
	for patience := time.Now().Add(time.Minute); l.signed.Load() < until && l.failed.Load() == 0; {
		if time.Now().After(patience) {
			l.t.Fatal("no signature for a minute")
		}
		time.Sleep(time.Millisecond)
	}
}

func (l *load) end() {
	l.stop.Store(true)
	l.group.Wait()
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

func descriptors(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// hits counts the workers that ended with requests in flight.
func hits(p *host.Plugin) int {
	n := 0
	for _, line := range p.Logs.Lines() {
		if strings.Contains(line.Message, "worker ended") && line.Fields["in_flight"] != "0" {
			n++
		}
	}
	return n
}

func TestKillingTheWorkerUnderLoadCostsNoSignature(t *testing.T) {
	const wanted, most = 30, 90
	p := ready(t, softhsm.New(t))
	var public []*keymanagerv1.PublicKey
	for _, id := range []string{"x509-CA-A", "x509-CA-B", "JWT-Signer-A", "JWT-Signer-B"} {
		public = append(public, generate(t, p, id, p256))
	}
	l := startLoad(t, p, 8, public...)
	l.await(200)
	p.AwaitCounter(t, "pkcs11.key_made", 4) // the connection to the host stays
	before := descriptors(t, p.PID())
	kills := 0
	for ; hits(p) < wanted && kills < most; kills++ {
		pids := workers(t, p)
		if len(pids) != 1 {
			t.Fatalf("kill %d: workers %v", kills, pids)
		}
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.await(100)
	}
	l.end()
	t.Logf("%d signatures, %d failed, %d kills, %d of them with requests in flight", l.signed.Load(), l.failed.Load(), kills, hits(p))
	if n := countLogs(p, "worker ended"); n != kills {
		t.Errorf("%d workers ended, %d were killed", n, kills)
	}
	if hits(p) < wanted {
		t.Errorf("only %d of %d kills hit requests in flight", hits(p), kills)
	}
	if after := descriptors(t, p.PID()); after > before {
		t.Errorf("descriptors of the front: %d before, %d after", before, after)
	}
}

func TestKillingTheWorkerWhileKeysAreMadeLosesNoneAndLeavesOnePerId(t *testing.T) {
	const kills = 15
	token := softhsm.New(t)
	p := ready(t, token)
	stop := make(chan struct{})
	var group sync.WaitGroup
	var made atomic.Int64
	last := make([]*keymanagerv1.PublicKey, 2)
	for i := range last {
		id := fmt.Sprintf("x509-CA-%d", i)
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				response, err := p.KeyManager().GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: p256})
				if err != nil {
					t.Errorf("GenerateKey %s: %v", id, err)
					return
				}
				last[i] = response.PublicKey
				made.Add(1)
			}
		})
	}
	for range kills {
		until := made.Load() + 5
		for made.Load() < until && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		for _, pid := range workers(t, p) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	until := made.Load() + 5
	for made.Load() < until && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	group.Wait()
	for _, key := range last {
		sign(t, p, key, plain(key.Id, crypto.SHA256, digest(crypto.SHA256)))
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = ready(t, token)
	for _, key := range last {
		sign(t, p, key, plain(key.Id, crypto.SHA256, digest(crypto.SHA256)))
	}
	t.Logf("%d keys made under %d kills", made.Load(), kills)
}

func TestReconfigureUnderLoadCostsNoSignature(t *testing.T) {
	token := softhsm.New(t)
	p := ready(t, token)
	key := generate(t, p, "x509-CA-A", p256)
	l := startLoad(t, p, 8, key)
	for i := range 5 {
		l.await(50)
		configure(t, p, token.PluginData(fmt.Sprintf("max_sessions = %d", i+2)))
		expect(t, p.Configure("example.org", token.PluginData(`tokn = "x"`)), codes.InvalidArgument, `tokn`)
		wrong := strings.Replace(token.PluginData("startup_wait = \"0s\""), "token=spire", "token=absent", 1)
		expect(t, p.Configure("example.org", wrong), codes.Unavailable, "absent")
	}
	l.await(50)
	l.end()
	generate(t, p, "x509-CA-B", p256)
	for patience := time.Now().Add(30 * time.Second); len(workers(t, p)) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatalf("workers left behind: %v", workers(t, p))
		}
	}
	if l.failed.Load() != 0 {
		t.Errorf("%d signatures failed", l.failed.Load())
	}
}

func TestAnAbsentTokenIsWaitedForAndAWrongPINIsNot(t *testing.T) {
	token := softhsm.New(t)
	away := token.Tokens + ".away"
	if err := os.Rename(token.Tokens, away); err != nil {
		t.Fatal(err)
	}
	p := start(t, token)
	done := make(chan error, 1)
	go func() { done <- p.Configure("example.org", token.PluginData("")) }()
	select {
	case err := <-done:
		t.Fatalf("Configure did not wait: %v", err)
	case <-time.After(700 * time.Millisecond): // the token must come late: nothing to wait for here
	}
	if err := os.Rename(away, token.Tokens); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Configure after the token came: %v", err)
	}

	q := start(t, token)
	if err := os.WriteFile(token.PINFile, []byte("9999\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := strings.Replace(token.PluginData(""), "hsm-id", "other-id", 1)
	err := q.Configure("example.org", data)
	expect(t, err, codes.FailedPrecondition, "PIN")
	if err != nil && strings.Contains(err.Error(), "9999") {
		t.Errorf("the PIN is in the error: %v", err)
	}
}
