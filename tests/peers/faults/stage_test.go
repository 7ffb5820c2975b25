package faults_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/softhsm"
)

// stage is a plugin, a token that fails by script, and callers.
type stage struct {
	*testing.T
	row    *row
	token  *softhsm.Token
	p      *host.Plugin
	load   *load
	keys   []*keymanagerv1.PublicKey
	data   string // plugin_data
	script string // the file
	env    []string
	rings  uint64
	mark   int64        // where in SCRIPT.fired the present script's record begins
	killed int64        // signatures up to the last kill
	ended  map[int]bool // workers that had to end
	before resources
	began  time.Time
}

const (
	callers = 4
	slow    = 3 * time.Second // worth a line in the log of the test
)

func faultyModule(t testing.TB) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(host.Binary(t)), "tests", "faulty.so")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// bare is a stage whose token has objects of others (a pair with a name, a pair without)
// and no key of ours yet.
func bare(t *testing.T, r *row, options string) *stage {
	t.Helper()
	token := softhsm.New(t)
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "somebody else's", "--id", "01")
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1")
	s := &stage{T: t, row: r, token: token, script: filepath.Join(token.Dir, "script"), ended: map[int]bool{},
		began: time.Now()}
	s.env = append(token.Env(), "FAULTY_MODULE="+softhsm.Module(), "FAULTY_SCRIPT="+s.script)
	s.data = strings.Replace(token.PluginData(options), softhsm.Module(), faultyModule(t), 1)
	s.start()
	return s
}

func (s *stage) start() {
	s.Helper()
	p, err := host.Load(s.Context(), host.Options{Type: "KeyManager", Path: host.Binary(s), Env: s.env})
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
	for _, id := range []string{"x509-CA-A", "JWT-Signer-A"} {
		s.makeKey(id)
	}
	s.load = startLoad(s.p, s.keys, callers, true)
	s.load.round(s)
	s.kill() // the first restart makes the front connect to the host's Metrics service
	await(s, 10*time.Second, "the first restart", func() bool { return len(s.ends()) == 1 })
	s.load.round(s)
	s.before = s.resources()
	return s
}

func (s *stage) makeKey(id string) {
	s.Helper()
	key, err := generate(s.p, id)
	if err != nil {
		s.Fatalf("GenerateKey %s: %v", id, err)
	}
	s.keys = append(s.keys, key)
}

// ---- the script ----

// play a new script; the next call reads it.
func (s *stage) play(format string, args ...any) {
	s.Helper()
	if info, err := os.Stat(s.script + ".fired"); err == nil {
		s.mark = info.Size()
	}
	text := fmt.Sprintf(format, args...)
	if err := os.WriteFile(s.script+".new", []byte(text+"\n"), 0o600); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(s.script+".new", s.script); err != nil {
		s.Fatal(err)
	}
	page, err := os.OpenFile(s.script+".page", os.O_WRONLY, 0)
	if err != nil {
		return // nobody has read a script yet
	}
	defer page.Close()
	s.rings++
	if _, err := page.WriteAt(binary.NativeEndian.AppendUint64(nil, s.rings), 0); err != nil {
		s.Fatal(err)
	}
}

type firing struct {
	pid      int
	function string
}

// fired of the present script so far.
func (s *stage) fired() []firing {
	s.Helper()
	text, err := os.ReadFile(s.script + ".fired")
	if errors.Is(err, os.ErrNotExist) || int64(len(text)) < s.mark {
		return nil
	}
	var all []firing
	for _, line := range strings.Split(string(text[s.mark:]), "\n") {
		if fields := strings.Fields(line); len(fields) == 4 {
			pid, _ := strconv.Atoi(fields[0])
			all = append(all, firing{pid, fields[3]})
		}
	}
	return all
}

// ---- workers ----

// workers the front has started and not yet buried.
func workers(t testing.TB, p *host.Plugin) []int {
	t.Helper()
	var pids []int
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.PID()))
	for _, path := range threads {
		text, _ := os.ReadFile(path)
		for _, field := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(field)
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill the worker, if it has signed anything since the last time.
func (s *stage) kill() {
	signed := s.load.signed.Load()
	if signed <= s.killed {
		return
	}
	s.killed = signed + callers // those on their way when it dies
	for _, pid := range workers(s, s.p) {
		if !s.ended[pid] && syscall.Kill(pid, syscall.SIGKILL) == nil {
			s.ended[pid] = true
		}
	}
}

const endedLine = "PKCS#11 worker ended; starting another"

// ends of workers as the log tells them.
func (s *stage) ends() []host.Line {
	return slices.DeleteFunc(s.p.Logs.Lines(), func(line host.Line) bool { return line.Message != endedLine })
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
	s.load.failures()
	start := time.Now()
	lines := len(s.ends())
	known := len(s.ended)
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
	s.load.round(s)
	for _, firing := range s.fired() {
		if f.ends {
			s.ended[firing.pid] = true
		}
	}
	s.play("")
	survived := true
	if expected := len(s.ended) - known; f.ends {
		end := time.Now().Add(5 * time.Second)
		for len(s.ends())-lines < expected && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
		}
		if got := len(s.ends()) - lines; got != expected {
			s.Errorf("%s: the log tells of %d ended workers; want %d", f.name, got, expected)
			survived = false
		}
	}
	refused, wrong := 0, 0
	for _, err := range s.load.failures() {
		if f.allow != nil && f.allow(err) {
			refused++
			continue
		}
		wrong++
		s.Errorf("%s: %v", f.name, err)
	}
	s.row.mutex.Lock()
	s.row.failed += wrong
	s.row.mutex.Unlock()
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
	await(s, 70*time.Second, f.name, func() bool {
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

// ---- what may not grow ----

type resources struct {
	front, worker []string // descriptors
	kilobytes     int      // resident, of the front
}

func descriptors(pid int) (all []string) {
	entries, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, entry := range entries {
		to, _ := os.Readlink(entry)
		all = append(all, to)
	}
	return all
}

func (s *stage) resources() resources {
	r := resources{front: descriptors(s.p.PID())}
	if pids := workers(s, s.p); len(pids) == 1 {
		r.worker = descriptors(pids[0])
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.p.PID()))
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmRSS:") {
			_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &r.kilobytes)
		}
	}
	return r
}

// SoftHSM opens a file for a moment now and then, and the front connects to the host's
// Metrics service when gRPC sees fit. What leaks leaks more often than once.
func (s *stage) checkGrowth() {
	s.Helper()
	const (
		growth = 24 << 10 // kB
		extra  = 2        // descriptors
	)
	var now resources
	end := time.Now().Add(5 * time.Second)
	for time.Now().Before(end) {
		now = s.resources()
		if len(now.front) <= len(s.before.front)+extra && len(now.worker) <= len(s.before.worker)+extra {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(now.front) > len(s.before.front)+extra || len(now.worker) > len(s.before.worker)+extra || now.kilobytes > s.before.kilobytes+growth {
		s.Errorf("front's descriptors, worker's descriptors, front's kB: %v before, %v now", s.before, now)
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
	s.load.paused.Store(false)
	s.load.round(s)
	s.load.end()
	s.checkGrowth()
	if s.load.current != nil {
		s.keys = append(s.keys, s.load.current)
	}
	s.row.mutex.Lock()
	s.row.signatures += s.load.signed.Load()
	s.row.keys += s.load.made.Load()
	s.row.restarts += len(s.ends())
	s.row.took = max(s.row.took, time.Since(s.began))
	s.row.mutex.Unlock()
	if err := s.p.Close(); err != nil {
		s.Errorf("unload: %v", err)
	}
	s.tellLog()
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
		} else if err := sign(s.p, key); err != nil {
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
	for end := time.Now().Add(30 * time.Second); got.ours != want.ours && time.Now().Before(end); got = s.objects() {
		time.Sleep(100 * time.Millisecond)
	}
	if got.ours != want.ours || got.others != want.others || got.nameless < want.nameless {
		s.Errorf("objects on the token: %+v; want %+v", got, want)
	}
}
