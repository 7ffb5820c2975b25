package faults_test

import (
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/softhsm"
)

// stage is a plugin, a token that fails by script, and callers.
type stage struct {
	*testing.T
	row    *row
	token  *softhsm.Token
	module *faulty.Module
	p      *host.Plugin
	load   *load.Load
	keys   []*keymanagerv1.PublicKey
	data   string       // plugin_data
	killed int64        // signatures up to the last kill
	ended  map[int]bool // workers that had to end by this fault; some day their numbers come again
	began  time.Time
	habit  string // of the token, to the next process too
}

const (
	callers    = 4
	sessions   = 4                     // max_sessions, beside the one that is logged in
	pace       = 12 * time.Millisecond // of each caller
	slow       = 3 * time.Second       // worth a line in the log of the test
	patience   = 70 * time.Second      // for what comes by itself, on a busy machine too
	rotatingID = "rotating"
)

// bare is a stage whose token has objects of others (a pair with a name, a pair without)
// and no key of ours yet.
func bare(t *testing.T, r *row, options string) *stage {
	t.Helper()
	token := softhsm.New(t)
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "somebody else's", "--id", "01")
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1")
	s := &stage{T: t, row: r, token: token, module: faulty.Wrap(t, token), ended: map[int]bool{}, began: time.Now()}
	s.data = s.module.In(token.PluginData(options))
	s.start()
	t.Cleanup(func() {
		if lines := s.p.Logs.Lines(); t.Failed() {
			t.Logf("the end of the plugin's log:\n%s", lines[max(0, len(lines)-100):])
		}
	})
	return s
}

func (s *stage) start() {
	s.Helper()
	p, err := host.Load(s.Context(), host.Options{Type: "KeyManager", Path: host.Binary(s), Env: append(s.token.Env(), s.module.Env()...)})
	if err != nil {
		s.Fatal(err)
	}
	s.p = p
	s.configure()
}

func (s *stage) configure() {
	s.Helper()
	if err := s.p.Configure("example.org", s.data); err != nil {
		s.Errorf("Configure: %v", err)
	}
}

// newStage has callers that sign with two keys, and one that makes a third anew all the
// time.
func newStage(t *testing.T, r *row, options string) *stage {
	t.Helper()
	s := bare(t, r, options)
	s.begin()
	return s
}

func (s *stage) begin() {
	s.Helper()
	for _, id := range []string{"x509-CA-A", "JWT-Signer-A"} {
		s.makeKey(id)
	}
	s.load = load.New(s, s.p, pace)
	s.load.Sign(callers, s.keys...)
	s.load.Rotate(rotatingID)
	s.load.Round()
	ends := len(s.p.Ends())
	s.kill() // the first restart makes the front connect to the host's Metrics service
	await(s, "the first restart", func() bool { return len(s.p.Ends()) > ends })
	s.load.Round()
	s.load.Begin()
}

func (s *stage) makeKey(id string) {
	s.Helper()
	key, err := load.Generate(s.p, id, keymanagerv1.KeyType_EC_P256)
	if err != nil {
		s.Fatalf("GenerateKey %s: %v", id, err)
	}
	s.keys = append(s.keys, key)
}

// ---- the script ----

func (s *stage) play(format string, args ...any) {
	s.Helper()
	s.module.Play(s, format, args...)
}

// fired of the present script so far.
func (s *stage) fired() []faulty.Firing {
	s.Helper()
	return s.module.Fired(s)
}

// ---- workers ----

// kill the worker, if it has signed anything since the last time.
func (s *stage) kill() {
	signed := s.load.Signed()
	if signed <= s.killed {
		return
	}
	s.killed = signed + callers // those on their way when it dies
	for _, pid := range s.p.Workers() {
		if !s.ended[pid] && syscall.Kill(pid, syscall.SIGKILL) == nil {
			s.ended[pid] = true
		}
	}
}

// ---- one fault ----

type fault struct {
	name    string
	script  string
	provoke func()           // called until the fault has happened; nil: the load does it
	pace    time.Duration    // between two calls of provoke
	want    int              // how often it has to happen; 0: once
	ends    bool             // it ends its worker: each end is in the log, and no other
	allow   func(error) bool // failures that are right
	after   func(s *stage)   // once it has happened
	hold    func(s *stage)   // instead of waiting that it happens
}

// suffer a fault under load, and say what was wrong with the outcome. ONLY is an expression
// for the scripts to play, when one of them is to be looked at by itself.
func (s *stage) suffer(f fault) {
	s.Helper()
	if only := os.Getenv("ONLY"); !regexp.MustCompile(only).MatchString(f.name) {
		return
	}
	s.load.Failures()
	start := time.Now()
	lines := len(s.p.Deaths())
	clear(s.ended)
	if f.want == 0 {
		f.want = 1
	}
	s.play("%s", f.script)
	if f.hold != nil {
		f.hold(s)
	} else {
		s.awaitFault(f)
	}
	if f.after != nil {
		f.after(s)
	}
	s.load.Round()
	for _, firing := range s.fired() {
		if f.ends {
			s.ended[firing.PID] = true
		}
	}
	s.play("")
	survived := true
	if expected := len(s.ended); f.ends {
		end := time.Now().Add(patience)
		for len(s.p.Deaths())-lines < expected && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
		}
		if got := len(s.p.Deaths()) - lines; got != expected {
			s.Errorf("%s: the log tells of %d ended workers; want %d", f.name, got, expected)
			survived = false
		}
	}
	refused, wrong := 0, 0
	for _, err := range s.load.Failures() {
		if f.allow != nil && f.allow(err) {
			refused++
			continue
		}
		wrong++
		s.Errorf("%s: %v", f.name, err)
	}
	s.row.add(func(r *row) { r.failed += wrong })
	s.row.count(survived && wrong == 0, refused)
	if took := time.Since(start); took > slow {
		s.Logf("%s: mended in %.1f s", f.name, took.Seconds())
	}
}

func (s *stage) awaitFault(f fault) {
	s.Helper()
	next := time.Now()
	if f.pace == 0 {
		f.pace = 300 * time.Millisecond
	}
	await(s, f.name, func() bool {
		if len(s.fired()) >= f.want {
			return true
		}
		if f.provoke != nil && time.Now().After(next) {
			f.provoke()
			next = time.Now().Add(f.pace)
		}
		return false
	})
}

// ---- afterwards ----

// checkSessions: those of workers that ended do not linger, those of the one there is are few.
func (s *stage) checkSessions() {
	s.Helper()
	n := s.module.Sessions(s)
	for end := time.Now().Add(patience); (n < 1 || n > sessions+1) && time.Now().Before(end); n = s.module.Sessions(s) {
		time.Sleep(10 * time.Millisecond) // a reconfiguration has twice as many for a moment
	}
	if n < 1 || n > sessions+1 {
		s.Errorf("%d sessions are open; want 1 to %d", n, sessions+1)
	}
}

// objects on the token, by owner. Files would tell less: SoftHSM leaves some that it does
// not show, killed in the middle of a write.
type objects struct{ ours, others, nameless int }

func (s *stage) objects() (found objects) {
	s.Helper()
	for _, object := range strings.Split("\n"+s.token.Tool(s, "--list-objects"), " Key Object;")[1:] {
		_, label, _ := strings.Cut(object, "label:")
		label, _, _ = strings.Cut(label, "\n")
		label = strings.TrimSpace(label)
		switch {
		case label == "":
			found.nameless++
		case strings.HasPrefix(label, "sp1-"):
			found.ours++
		default:
			found.others++
		}
	}
	return found
}

// finish: with the faults over and nobody's help, all is as it should be, also to the
// next process.
func (s *stage) finish() {
	s.Helper()
	s.play("")
	s.load.Pause(false)
	s.load.Round()
	s.checkSessions()
	s.load.End()
	if key := s.load.Current(rotatingID); key != nil {
		s.keys = append(s.keys, key)
	}
	s.row.add(func(r *row) {
		r.signatures += s.load.Signed()
		r.keys += s.load.Made()
	})
	s.restart()
}

// restart the plugin: what it finds is what there was.
func (s *stage) restart() {
	s.Helper()
	s.row.add(func(r *row) {
		r.restarts += len(s.p.Ends())
		r.took = max(r.took, time.Since(s.began))
	})
	if err := s.p.Close(); err != nil {
		s.Errorf("unload: %v", err)
	}
	s.tellLog()
	s.play("%s", s.habit)
	s.start()
	s.checkKeys()
	s.checkObjects()
	if err := s.p.Close(); err != nil {
		s.Errorf("unload: %v", err)
	}
}

// tellLog of a failed test; what is said of every key made is left out.
func (s *stage) tellLog() {
	if !s.Failed() {
		return
	}
	for _, line := range s.p.Logs.Lines() {
		if line.Level >= hclog.Warn {
			s.Logf("%s %v", line.Fields["timestamp"], line)
		}
	}
}

// checkKeys: one served key for each id, the one last handed out, and it signs.
func (s *stage) checkKeys() {
	s.Helper()
	response, err := s.p.KeyManager().GetPublicKeys(s.Context(), &keymanagerv1.GetPublicKeysRequest{})
	if err != nil {
		s.Errorf("GetPublicKeys: %v", err)
		return
	}
	served := map[string]string{}
	for _, key := range response.PublicKeys {
		served[key.Id] = key.Fingerprint
	}
	if len(served) != len(s.keys) {
		s.Errorf("%d keys served; want %d", len(served), len(s.keys))
	}
	for _, key := range s.keys {
		if served[key.Id] != key.Fingerprint {
			s.Errorf("key %s: another one is served than was handed out", key.Id)
		} else if err := load.Sign(s.p, key); err != nil {
			s.Errorf("key %s: %v", key.Id, err)
		}
	}
}

// checkObjects: on the token are our keys and nothing else of ours, what is somebody else's,
// and what has no name; of the last only SoftHSM itself may have left more.
func (s *stage) checkObjects() {
	s.Helper()
	want := objects{ours: 2 * len(s.keys), others: 2, nameless: 2}
	got := s.objects()
	// hundreds may wait to be destroyed, one after the other: as long as they get fewer, all is well
	for end := time.Now().Add(patience); got.ours != want.ours && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
		before := got.ours
		if got = s.objects(); got.ours < before {
			end = time.Now().Add(patience)
		}
	}
	if got.ours != want.ours || got.others != want.others || got.nameless < want.nameless {
		s.Errorf("objects on the token: %+v; want %+v", got, want)
	}
}

func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}
