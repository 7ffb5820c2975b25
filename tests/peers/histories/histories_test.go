// Package histories plays random histories of a server with the real program: rotations as SPIRE
// makes them, ends and starts of all kinds, records and tokens that are lost or restored, copies.
// After each step, what SPIRE was told last must be served and sign, or a start says what is lost.
// tests/unit/model.c does so with far more histories and a token that is made up.
//
// SPIRE_HSM is the binary. HISTORY_SEED=N repeats one history; LONG=1 plays 500.
package histories

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const (
	steps = 12
	epoch = 1735689600 // of a label's generation: 2025-01-01T00:00Z
)

var (
	ids  = []string{"x509-CA-A", "x509-CA-B", "JWT-Signer-A", "JWT-Signer-B"}
	code = regexp.MustCompile(`accept_loss = "([0-9a-f]{8})"`)
)

// Most of the time a history waits for processes to end.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8")
	os.Exit(m.Run())
}

// key that SPIRE was told of. Labels of one id are in the order in which they were made.
type key struct{ print, label string }

// backup of a record, or of a token: empty if there is none.
type backup struct {
	path   string
	served map[string]key // by the record
}

type server struct {
	identity string
	data     string
	options  string
	p        *host.Plugin
	journal  map[string]key  // what SPIRE knows, by id
	recorded map[string]key  // what the record says is served
	unheard  map[string]bool // ids of which SPIRE did not get the last answer
	// Nothing but the token tells now which key is the newest of an id.
	forgotten bool
	record    backup
}

type history struct {
	*testing.T
	token   *softhsm.Token
	module  *faulty.Module
	random  *rand.Rand
	copies  bool
	servers []*server
	tokens  backup
	killed  int  // processes, while they made a key
	untidy  bool // what is left is for spire-hsm prune
}

func (h *history) tell(format string, args ...any) {
	h.Helper()
	h.Logf("  %s", strings.ReplaceAll(fmt.Sprintf(format, args...), h.token.Dir+"/", ""))
}

func (h *history) oneIn(n int) bool { return h.random.IntN(n) == 0 }

func (h *history) anyID() string { return ids[h.random.IntN(len(ids))] }

// ---- what is there ----

// onToken are the labels of the keys there.
func (h *history) onToken() map[string]bool {
	h.Helper()
	there := map[string]bool{}
	for _, label := range h.token.Labels(h) {
		there[label] = true
	}
	return there
}

func (h *history) label(s *server, print string) string {
	h.Helper()
	var label string
	scene.Eventually(h, "the log tells of the key", func() bool {
		for _, line := range s.p.Logs.Lines() {
			if line.Fields["sha256"] == print && line.Fields["label"] != "" {
				label = line.Fields["label"]
			}
		}
		return label != ""
	})
	return label
}

// served keys, each of which signs.
func (h *history) served(s *server) map[string]key {
	h.Helper()
	response, err := s.p.KeyManager().GetPublicKeys(h.Context(), &keymanagerv1.GetPublicKeysRequest{})
	scene.Must(h, err)
	found := map[string]key{}
	for _, public := range response.PublicKeys {
		found[public.Id] = key{public.Fingerprint, h.label(s, public.Fingerprint)}
		scene.Sign(h, s.p, public)
	}
	return found
}

// check all that must hold while servers run.
func (h *history) check() {
	h.Helper()
	there := h.onToken()
	for _, s := range h.servers {
		found := h.served(s)
		for id, known := range s.journal {
			if found[id] != known {
				h.Errorf("%s serves %v as %s, and SPIRE knows %v", s.identity, found[id], id, known)
			}
			if !there[known.label] {
				h.Errorf("%s of %s was destroyed, and SPIRE needs it", known.label, s.identity)
			}
		}
	}
	if h.Failed() {
		h.FailNow()
	}
}

// ---- starts and ends ----

// load the plugin and configure it.
func (h *history) load(s *server, more string) error {
	h.Helper()
	setting := scene.Setting{Environ: append(h.token.Env(), h.module.Env()...)}
	s.p = setting.Start(h)
	return s.p.Configure(scene.Domain, s.data+s.options+more)
}

// missing are X.509 keys that the record has and the token does not. Those that are older than
// another, which has signed for a minute, may be gone.
func (s *server) missing(there map[string]bool) (some, newest bool) {
	var last key
	for id, k := range s.recorded {
		if strings.HasPrefix(id, "x509") {
			some = some || !there[k.label]
			if k.generation() > last.generation() {
				last = k
			}
		}
	}
	return some, last.label != "" && !there[last.label]
}

func (k key) generation() string {
	fields := strings.SplitN(k.label, "-", 4)
	if len(fields) < 4 {
		return ""
	}
	return fields[2]
}

// superseded is a key of the record of which the token has a newer one.
func superseded(k key, there map[string]bool) bool {
	fields := strings.SplitN(k.label, "-", 4)
	for label := range there {
		other := strings.SplitN(label, "-", 4)
		if len(fields) == 4 && len(other) == 4 && other[1] == fields[1] && other[3] == fields[3] && other[2] > fields[2] {
			return true
		}
	}
	return false
}

func (h *history) start(s *server) {
	h.Helper()
	there := h.onToken()
	err := h.load(s, "")
	if err != nil {
		h.accept(s, err, there)
	} else if _, must := s.missing(there); must && !s.forgotten && !h.hasNewer(s, there) {
		h.Fatalf("%s starts, though a key of its record is gone", s.identity)
	}
	h.compare(s, there)
}

func (h *history) hasNewer(s *server, there map[string]bool) bool {
	for _, k := range s.recorded {
		if !there[k.label] && superseded(k, there) {
			return true
		}
	}
	return false
}

// accept a loss, if it is one, as an operator does.
func (h *history) accept(s *server, err error, there map[string]bool) {
	h.Helper()
	message := status.Convert(err).Message()
	found := code.FindStringSubmatch(message)
	if found == nil {
		h.Fatalf("a start of %s is refused without a code: %v", s.identity, err)
	}
	if some, _ := s.missing(there); !some && !s.forgotten {
		h.Fatalf("a start of %s is refused, and nothing is lost: %v", s.identity, err)
	}
	h.tell("refused, and accepted: %.60s...", message)
	scene.Must(h, s.p.Close())
	scene.Must(h, h.load(s, fmt.Sprintf("accept_loss = %q\n", found[1])))
}

// compare what a start serves with what SPIRE knows. What is lost, SPIRE makes anew.
func (h *history) compare(s *server, there map[string]bool) {
	h.Helper()
	found := h.served(s)
	for id, known := range s.journal {
		switch {
		case found[id] == known || !there[known.label]:
		case s.unheard[id] && found[id].label > known.label:
		default:
			h.Fatalf("%s serves %v as %s after a start, and SPIRE knows %v", s.identity, found[id], id, known)
		}
	}
	s.journal, s.recorded, s.unheard, s.forgotten = found, maps.Clone(found), map[string]bool{}, false
}

// end in an orderly way or by SIGKILL.
func (h *history) end(s *server) {
	h.Helper()
	workers := s.p.Workers()
	if h.oneIn(2) {
		h.tell("%s is killed", s.identity)
		s.p.Kill()
	} else {
		h.tell("%s ends", s.identity)
		scene.Must(h, s.p.Close())
	}
	h.gone(workers)
}

func (h *history) gone(workers []int) {
	h.Helper()
	for _, worker := range workers {
		scene.Eventually(h, "the worker goes after its front", func() bool { return host.Gone(worker) })
	}
}

// ---- steps ----

func (h *history) generate(s *server, id string) {
	h.Helper()
	made := scene.Generate(h, s.p, id, keymanagerv1.KeyType_EC_P256)
	s.journal[id] = key{made.Fingerprint, h.label(s, made.Fingerprint)}
	s.recorded[id] = s.journal[id]
	h.tell("%s made %s", s.identity, s.journal[id].label)
}

func (h *history) rotate(s *server) {
	for range 1 + h.random.IntN(3) {
		h.generate(s, h.anyID())
	}
}

func (h *history) restart(s *server) {
	h.end(s)
	h.start(s)
}

// beginGenerate a key, and let it come to a random point.
func (h *history) beginGenerate(s *server, id string) chan *keymanagerv1.PublicKey {
	told := make(chan *keymanagerv1.PublicKey, 1)
	p := s.p
	go func() {
		made, _ := load.Generate(p, id, keymanagerv1.KeyType_EC_P256)
		told <- made
	}()
	time.Sleep(time.Duration(h.random.IntN(30)) * time.Millisecond) // at random is the point
	return told
}

func (h *history) killFront(s *server) {
	id := h.anyID()
	h.killed++
	workers := s.p.Workers()
	told := h.beginGenerate(s, id)
	s.p.Kill()
	if made := <-told; made != nil {
		s.journal[id] = key{made.Fingerprint, h.label(s, made.Fingerprint)}
		s.recorded[id] = s.journal[id]
	} else {
		s.unheard[id] = true
	}
	h.tell("%s is killed while it makes %s; told: %v", s.identity, id, !s.unheard[id])
	h.gone(workers)
	h.start(s)
}

func (h *history) killWorker(s *server) {
	id := h.anyID()
	h.killed++
	told := h.beginGenerate(s, id)
	s.p.KillWorkers()
	h.tell("the worker of %s is killed while it makes %s", s.identity, id)
	made := <-told
	if made == nil {
		h.Fatalf("a dead worker cost the call for %s", id)
	}
	s.journal[id] = key{made.Fingerprint, h.label(s, made.Fingerprint)}
	s.recorded[id] = s.journal[id]
}

func (h *history) reconfigure(s *server) {
	s.options = fmt.Sprintf("max_sessions = %d\n", 1+h.random.IntN(4))
	h.tell("%s is configured anew", s.identity)
	scene.Must(h, s.p.Configure(scene.Domain, s.data+s.options))
}

// hide some of the keys from a start for a while.
func (h *history) hide(s *server) {
	h.end(s)
	habit := []string{"hide", "unreadable CKR_GENERAL_ERROR", "unreadable CKR_OBJECT_HANDLE_INVALID"}[h.random.IntN(3)]
	half := []string{"private", "public", "both"}[h.random.IntN(3)]
	part := []string{"", "x509", "JWT"}[h.random.IntN(3)]
	script := fmt.Sprintf("profile %s %s %d %s", habit, half, 20+h.random.IntN(180), part)
	if h.oneIn(4) {
		script = fmt.Sprintf("C_FindObjects before CKR_DEVICE_ERROR for %d", 20+h.random.IntN(280))
	}
	h.tell("%s", script)
	h.module.Play(h, "%s", script)
	h.start(s)
	h.module.Play(h, "")
}

func (h *history) keep(s *server, record, token bool) {
	h.tell("backup: record %v, token %v", record, token)
	if record {
		s.record = backup{filepath.Join(h.TempDir(), "record"), maps.Clone(s.recorded)}
		h.copyFile(s.identity+".keys", s.record.path)
	}
	if token {
		h.tokens = backup{path: filepath.Join(h.TempDir(), "tokens")}
		scene.Must(h, os.CopyFS(h.tokens.path, os.DirFS(h.token.Tokens)))
	}
}

func (h *history) restore(s *server, record, token bool) {
	if record && s.record.path != "" {
		h.tell("the record is restored")
		scene.Must(h, os.RemoveAll(s.identity+".keys~"))
		h.copyFile(s.record.path, s.identity+".keys")
		s.recorded = maps.Clone(s.record.served)
		h.untidy = true
	}
	if token && h.tokens.path != "" {
		h.tell("the token is restored")
		scene.Must(h, os.RemoveAll(h.token.Tokens))
		scene.Must(h, os.CopyFS(h.token.Tokens, os.DirFS(h.tokens.path)))
		h.untidy = true
	}
}

func (h *history) copyFile(from, to string) {
	h.Helper()
	text, err := os.ReadFile(from)
	scene.Must(h, err)
	scene.Write(h, to, string(text))
}

// disaster while no server runs: something is kept, or comes back as it was.
func (h *history) disaster(s *server) {
	for _, other := range h.servers {
		h.end(other)
	}
	record, token := h.oneIn(2), h.oneIn(2)
	if !record {
		token = true
	}
	record = record && !h.copies // an older one may serve the keys of the other server
	if h.oneIn(2) || (s.record.path == "" && h.tokens.path == "") {
		h.keep(s, record, token)
	} else {
		h.restore(s, record, token)
	}
	for _, other := range h.servers {
		h.start(other)
	}
}

// loseRecord and its copy, or have both damaged. Backups of it do not know the keys to come.
func (h *history) loseRecord(s *server) {
	if h.copies {
		return
	}
	h.end(s)
	damaged := h.oneIn(2)
	h.tell("the record is lost, or damaged: %v", damaged)
	for _, path := range []string{s.identity + ".keys", s.identity + ".keys~"} {
		if damaged {
			scene.Write(h, path, "{")
		} else {
			scene.Must(h, os.RemoveAll(path))
		}
	}
	s.forgotten, s.record, h.untidy = true, backup{}, true
	h.start(s)
}

// copyServer is a second server with the identity and the record of the first one.
func (h *history) copyServer(s *server) {
	if !h.copies || len(h.servers) > 1 {
		return
	}
	h.await(s)
	second := &server{identity: s.identity + "-copy", unheard: map[string]bool{},
		journal: maps.Clone(s.journal), recorded: maps.Clone(s.recorded)}
	second.data = strings.Replace(s.data, s.identity, second.identity, 1)
	h.tell("identity and record are copied")
	h.copyFile(s.identity, second.identity)
	h.copyFile(s.identity+".keys", second.identity+".keys")
	h.servers = append(h.servers, second)
	h.start(second)
	h.untidy = true
}

// await that no key is ahead of the clock, as those are that are made in a rush.
func (h *history) await(s *server) {
	h.Helper()
	for _, k := range s.journal {
		made, err := strconv.ParseInt(k.generation(), 32, 64) // seconds of 2025
		scene.Must(h, err)
		scene.Eventually(h, "the clock is past the newest key", func() bool { return time.Now().Unix()-epoch > made })
	}
}

// ---- histories ----

type step struct {
	odds int
	play func(*history, *server)
}

var all = []step{
	{6, (*history).rotate}, {3, (*history).restart}, {3, (*history).killFront}, {2, (*history).killWorker},
	{2, (*history).reconfigure}, {3, (*history).hide}, {4, (*history).disaster}, {1, (*history).loseRecord},
	{2, (*history).copyServer},
}

func (h *history) step() {
	var bag []step
	for _, s := range all {
		bag = append(bag, slices.Repeat([]step{s}, s.odds)...)
	}
	bag[h.random.IntN(len(bag))].play(h, h.servers[h.random.IntN(len(h.servers))])
}

// bounded: a server that need not wait a day leaves nothing but the keys that it serves, and what
// SoftHSM has of a key in whose making a process was killed.
func (h *history) bounded() {
	if h.untidy {
		return
	}
	s := h.servers[0]
	h.end(s)
	s.options = "destroy_superseded_after = 0\n"
	h.start(s)
	for _, id := range ids {
		h.generate(s, id)
	}
	most := len(ids) + h.killed
	scene.Eventually(h, fmt.Sprintf("no more than %d keys are on the token", most), func() bool {
		return len(h.onToken()) <= most
	})
	h.check()
}

func play(t *testing.T, seed uint64) {
	h := &history{T: t, token: softhsm.New(t), random: rand.New(rand.NewPCG(seed, 0))}
	h.module = faulty.Wrap(t, h.token)
	h.module.Play(t, "")
	h.copies = h.oneIn(4)
	s := &server{identity: filepath.Join(h.token.Dir, "hsm-id"), journal: map[string]key{}, recorded: map[string]key{},
		unheard: map[string]bool{}}
	s.data = strings.Replace(h.module.In(h.token.PluginData("startup_wait = \"2s\"\n")), "destroy_superseded_after = 0\n", "", 1)
	if h.copies {
		s.data += "keep_condemned = 64\n" // more would go before their day is over
	}
	h.servers = []*server{s}
	h.start(s)
	for _, id := range ids {
		h.generate(s, id)
	}
	for range steps {
		h.step()
		h.check()
	}
	h.bounded()
}

func TestRandomHistoriesOfAServerLoseNoKeyThatSpireKnows(t *testing.T) {
	count, first := 20, uint64(time.Now().UnixNano())
	if os.Getenv("LONG") != "" {
		count = 500
	}
	if text := os.Getenv("HISTORY_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		scene.Must(t, err)
		count, first = 1, seed
	}
	t.Logf("%d histories from HISTORY_SEED=%d", count, first)
	for i := range count {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("HISTORY_SEED=%d", seed), func(t *testing.T) {
			t.Parallel()
			play(t, seed)
		})
	}
}
