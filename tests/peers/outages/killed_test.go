package outages

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// hits are ends of workers with requests in flight.
func hits(p *host.Plugin) (n int) {
	for _, end := range p.Ends() {
		if end.Fields["in_flight"] != "0" {
			n++
		}
	}
	return n
}

func TestWorkersKilledAtRandomUnderLoadCostNoCall(t *testing.T) {
	kills := either(30, 300) // one a second is what is replaced
	faults(t, kills)
	b := newBench(t, "")
	p := b.Ready(t)
	a, c := scene.Generate(t, p, "x509-CA-A", p256), scene.Generate(t, p, "JWT-Signer-A", rsa2048)
	l := load.Rush(t, p, 8, a, c)
	killed := 0
	for ; hits(p) < kills && killed < 2*kills; killed += p.KillWorkers() {
		l.Await(20)
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // at random is the point
	}
	l.Await(50)
	l.EndWithoutFailures()
	expectEnds(t, p, killed)
	if n := hits(p); n < kills {
		t.Errorf("only %d of %d kills hit requests in flight", n, killed)
	}
}

// Killed while it makes a pair, SoftHSM may leave one without CKA_LOCAL: whole, and unfit.
func TestWorkersThatDieAfterMakingAnUnfitPairCostNoCallAndNoUnfitKeyIsServed(t *testing.T) {
	t.Parallel()
	faults(t, 2)
	b := newFaulty(t, "", "")
	p := b.Ready(t)
	b.module.Play(t, "C_GenerateKeyPair 1-2 before spoil shared\nC_GenerateKeyPair 1-2 after kill shared")
	scene.Sign(t, p, scene.Generate(t, p, "x509-CA-A", p256))
	expectEnds(t, p, 2)
	b.expectPairs(t, 1)
}

// One that nobody killed is asked once more, and no oftener.
func TestATokenThatMakesUnfitPairsFailsTheCallWithTheReason(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "", "C_GenerateKeyPair before spoil\n")
	p := b.Ready(t)
	_, err := load.Generate(p, "x509-CA-A", p256)
	expect(t, err, codes.Internal, "must not be served", "CKA_EXTRACTABLE")
	if made := len(b.module.FiredIn(t, "C_GenerateKeyPair")); made != 2 {
		t.Errorf("%d unfit pairs were made, want 2", made)
	}
	b.module.Play(t, "")
	scene.Sign(t, p, scene.Generate(t, p, "x509-CA-A", p256))
	expectEnds(t, p, 0)
	b.expectPairs(t, 1)
}

// rotator overwrites one id for ever, and knows which keys the plugin may hold for it: the
// last one it was told of, or one it was not told of any more.
type rotator struct {
	id    string
	last  *keymanagerv1.PublicKey
	asked bool // for one whose answer never came
}

func (r *rotator) run(p *host.Plugin, made *atomic.Int64, group *sync.WaitGroup) {
	group.Go(func() {
		for {
			r.asked = true
			key, err := load.Generate(p, r.id, p256)
			if err != nil {
				return
			}
			r.asked = false
			r.last = key
			made.Add(1)
		}
	})
}

func (r *rotator) check(t *testing.T, p *host.Plugin, found *keymanagerv1.PublicKey) {
	t.Helper()
	if found == nil {
		t.Fatalf("%s is lost", r.id)
	}
	if !r.asked && found.Fingerprint != r.last.Fingerprint {
		t.Errorf("%s is another key than was told", r.id)
	}
	scene.Sign(t, p, found)
	r.last = found
}

func TestAPluginKilledUnderLoadFindsEveryKeyAndLeavesNothing(t *testing.T) {
	kills := either(8, 100)
	faults(t, kills)
	b := newBench(t, "")
	b.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "somebody else's", "--id", "01")
	rotators := []*rotator{{id: "x509-CA-A"}, {id: "JWT-Signer-A"}, {id: "a/b c"}}
	p := b.Ready(t)
	for _, r := range rotators {
		r.last = scene.Generate(t, p, r.id, p256)
	}
	still := scene.Generate(t, p, "x509-CA-B", rsa2048)
	var made atomic.Int64
	for range kills {
		var group sync.WaitGroup
		for _, r := range rotators {
			r.run(p, &made, &group)
		}
		until := made.Load() + 6
		scene.Eventually(t, "keys are made", func() bool { return made.Load() >= until })
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // at random is the point
		workers := p.Workers()
		p.Kill()
		group.Wait()
		for _, worker := range workers {
			scene.Eventually(t, "the worker goes after its front", func() bool { return host.Gone(worker) })
		}
		p = b.Ready(t)
		found := served(t, p)
		for _, r := range rotators {
			r.check(t, p, found[r.id])
		}
		if len(found) != len(rotators)+1 || found[still.Id] == nil || found[still.Id].Fingerprint != still.Fingerprint {
			t.Fatalf("served: %v", found)
		}
		scene.Sign(t, p, still)
	}
	t.Logf("%d keys made, %d kills, 0 keys lost", made.Load(), kills)
	b.expectPairs(t, len(rotators)+1+1)
}

// What is left over is cleared away within seconds of the start, the stranger's key is not.
// Objects without a label are SoftHSM's, of writes that were cut short: nobody may touch them.
func (b *bench) expectPairs(t *testing.T, pairs int) {
	t.Helper()
	count := map[string]int{}
	settled := func() bool {
		clear(count)
		for name, number := range b.named(t) {
			count[strings.Split(name, " ")[0]] += number
		}
		return count["Private"] == pairs && count["Public"] == pairs
	}
	for patience := time.Now().Add(30 * time.Second); !settled() && time.Now().Before(patience); {
		time.Sleep(100 * time.Millisecond)
	}
	if !settled() {
		t.Errorf("%d private and %d public keys on the token, want %d of each", count["Private"], count["Public"], pairs)
	}
}

// ---- a real spire-server ----

func spireServer(t *testing.T) string {
	t.Helper()
	home, _ := os.UserHomeDir()
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(home, ".cache")
	}
	candidates, _ := filepath.Glob(filepath.Join(cache, "spire-hsm", "spire-*", "bin", "spire-server"))
	if path, err := exec.LookPath("spire-server"); err == nil {
		candidates = append([]string{path}, candidates...)
	}
	if bin := os.Getenv("SPIRE_BIN"); bin != "" {
		candidates = append([]string{filepath.Join(bin, "spire-server")}, candidates...)
	}
	for _, path := range candidates {
		if output, err := exec.Command(path, "--version").CombinedOutput(); err == nil && len(output) > 0 {
			return path
		}
	}
	t.Skip("no spire-server in SPIRE_BIN, PATH or the cache of make demo")
	return ""
}

// server is a spire-server with its configuration; it can be started again and again.
type server struct {
	*scene.Daemon
	t        *testing.T
	bin, dir string
	env      []string
	log      string
	number   int
}

func newServer(t *testing.T, b *bench) *server {
	t.Helper()
	s := &server{t: t, bin: spireServer(t), env: b.Environ}
	dir, err := os.MkdirTemp("/tmp", "outages") // socket paths have 108 bytes
	scene.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s.dir = dir
	s.env = append(s.env, "TMPDIR="+dir)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	scene.Must(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	scene.Must(t, listener.Close())
	binary, err := os.ReadFile(host.Binary(t))
	scene.Must(t, err)
	scene.Write(t, filepath.Join(dir, "server.conf"), fmt.Sprintf(`
server {
    trust_domain = "example.org"
    bind_address = "127.0.0.1"
    bind_port = "%d"
    socket_path = "%s/sock"
    data_dir = "%s"
    log_level = "DEBUG"
    log_format = "json"
    ca_key_type = "ec-p256"
    jwt_issuer = "https://oidc.example.org"
}
plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3"  connection_string = "%s/db" } }
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "pkcs11" {
        plugin_cmd = %q
        plugin_checksum = "%x"
        plugin_data {
%s
        }
    }
}
`, port, dir, dir, dir, host.Binary(t), sha256.Sum256(binary), b.Data))
	return s
}

func (s *server) start() {
	s.t.Helper()
	s.number++
	s.log = filepath.Join(s.dir, fmt.Sprintf("log.%d", s.number))
	log, err := os.Create(s.log)
	scene.Must(s.t, err)
	defer func() { _ = log.Close() }()
	syscall.Umask(0o027) // or it complains
	s.Daemon = scene.Launch(s.t, s.env, log, s.bin, "run", "-config", filepath.Join(s.dir, "server.conf"))
	scene.Eventually(s.t, "spire-server is healthy", func() bool {
		select {
		case <-s.Done:
			text, _ := os.ReadFile(s.log)
			s.t.Fatalf("spire-server ended:\n%s", text)
		default:
		}
		_, err := s.run("healthcheck")
		return err == nil
	})
}

func (s *server) run(args ...string) ([]byte, error) {
	cmd := exec.Command(s.bin, append(args, "-socketPath", filepath.Join(s.dir, "sock"))...)
	var output, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("spire-server %v: %w %s%s", args, err, output.Bytes(), complaint.Bytes())
	}
	return output.Bytes(), nil
}

// complaints in the log of the current run.
func (s *server) complaints() []string {
	text, err := os.ReadFile(s.log)
	scene.Must(s.t, err)
	var found []string
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) != nil || (entry.Level != "info" && entry.Level != "debug") {
			found = append(found, line)
		}
	}
	return found
}

// family of a process: itself and all below it.
func family(t testing.TB, pid int) []int {
	all := []int{pid}
	for _, child := range host.Children(pid) {
		all = append(all, family(t, child)...)
	}
	return all
}

func TestASpireServerKilledWhileMintingFindsItsKeysAgain(t *testing.T) {
	kills := either(3, 20)
	b := newBench(t, "")
	s := newServer(t, b)
	faults(t, kills)
	s.start()
	before, err := s.run("bundle", "show", "-format", "spiffe")
	scene.Must(t, err)
	for range kills {
		var group sync.WaitGroup
		var minted atomic.Int64
		for range 2 {
			group.Go(func() {
				for {
					if _, err := s.run("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a"); err != nil {
						return
					}
					minted.Add(1)
				}
			})
		}
		scene.Eventually(t, "tokens are minted", func() bool { return minted.Load() >= 3 })
		all := family(t, s.Process.Pid)
		if len(all) != 3 {
			t.Errorf("spire-server, front and worker are %d processes", len(all))
		}
		s.Kill()
		group.Wait()
		for _, pid := range all {
			scene.Eventually(t, "front and worker go with spire-server", func() bool { return host.Gone(pid) })
		}
		s.start()
		for _, line := range s.complaints() {
			t.Errorf("at the restart: %s", line)
		}
		after, err := s.run("bundle", "show", "-format", "spiffe")
		scene.Must(t, err)
		if !bytes.Equal(before, after) {
			t.Errorf("another bundle after the restart: keys were lost\n%s\n%s", before, after)
		}
		_, err = s.run("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a")
		scene.Must(t, err)
	}
	labels := b.Labels(t)
	t.Logf("%d kills; on the token: %d keys", kills, len(labels))
}

func TestASpireServerKilledWhileItMakesAuthoritiesLeavesNoKeyBehind(t *testing.T) {
	kills := either(3, 20)
	b := newBench(t, "")
	s := newServer(t, b)
	faults(t, kills)
	s.start()
	for range kills {
		all := family(t, s.Process.Pid)
		var group sync.WaitGroup
		for _, kind := range []string{"x509", "jwt"} {
			group.Go(func() {
				for {
					if _, err := s.run("localauthority", kind, "prepare"); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(50+rand.IntN(150)) * time.Millisecond) // at random is the point
		s.Kill()
		group.Wait()
		for _, pid := range all {
			scene.Eventually(t, "front and worker go with spire-server", func() bool { return host.Gone(pid) })
		}
		s.start()
		_, err := s.run("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a")
		scene.Must(t, err)
	}
	scene.Must(t, s.Process.Signal(syscall.SIGTERM))
	<-s.Done
	p := b.Ready(t)
	keys := served(t, p)
	for _, key := range keys {
		scene.Sign(t, p, key)
	}
	t.Logf("%d kills; %d keys served", kills, len(keys))
	b.expectPairs(t, len(keys))
}
