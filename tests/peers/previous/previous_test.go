// Package previous moves a server's keys in place, as docs/moving.md has it: from SPIRE's keys.json,
// or from another token. Each start is one of SPIRE's; what it had, it must have again.
//
// SPIRE_HSM is the binary.
package previous

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
	"spire-hsm/peers/hungdisk"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const (
	p256  = keymanagerv1.KeyType_EC_P256
	x509A = "x509-CA-A"
	x509B = "x509-CA-B"
	jwtA  = "JWT-Signer-A"
	quick = "startup_wait = \"1s\"\n"
	hasty = "call_timeout = \"8s\"\n" // for calls that fail in the end
)

// ---- SPIRE's keys.json ----

// disk is a file of SPIRE's disk key manager.
type disk struct {
	path  string
	keys  map[string][]byte // PKCS #8, by id
	print map[string]string // fingerprints, by id
}

func newDisk(t *testing.T, ids ...string) *disk {
	t.Helper()
	d := &disk{filepath.Join(t.TempDir(), "keys.json"), map[string][]byte{}, map[string]string{}}
	for _, id := range ids {
		d.make(t, id)
	}
	d.write(t)
	return d
}

// make a key as SPIRE does: JWT keys are RSA here, so that both kinds sign.
func (d *disk) make(t *testing.T, id string) {
	t.Helper()
	var key crypto.Signer
	var err error
	if strings.HasPrefix(id, "JWT") {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	scene.Must(t, err)
	pkix, err := x509.MarshalPKIXPublicKey(key.Public())
	scene.Must(t, err)
	d.keys[id], err = x509.MarshalPKCS8PrivateKey(key)
	scene.Must(t, err)
	sum := sha256.Sum256(pkix)
	d.print[id] = hex.EncodeToString(sum[:])
}

func (d *disk) write(t *testing.T) {
	t.Helper()
	text, err := json.MarshalIndent(map[string]any{"keys": d.keys}, "", "\t")
	scene.Must(t, err)
	scene.Write(t, d.path, string(text))
}

func (d *disk) bytes(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(d.path)
	scene.Must(t, err)
	return text
}

// left are the keys of it among what is served.
func (d *disk) left(served map[string]string) (count int) {
	for id, print := range d.print {
		if served[id] == print {
			count++
		}
	}
	return count
}

func (d *disk) block() string { return fmt.Sprintf("previous { keys_file = %q }\n", d.path) }

// ---- the server ----

type server struct {
	*softhsm.Token
	t *testing.T
}

func newServer(t *testing.T) *server { return &server{softhsm.New(t), t} }

// load is the plugin, not configured yet.
func (s *server) load(block string) (*host.Plugin, string) {
	s.t.Helper()
	setting := scene.Setting{Data: s.PluginData(quick + block), Environ: s.Env()}
	return setting.Start(s.t), setting.Data
}

func (s *server) start(block string) *host.Plugin {
	s.t.Helper()
	p, data := s.load(block)
	scene.Must(s.t, p.Configure(scene.Domain, data))
	return p
}

// restart in an orderly way, or with no warning.
func (s *server) restart(p *host.Plugin, block string) *host.Plugin {
	s.t.Helper()
	scene.Must(s.t, p.Close())
	return s.start(block)
}

func (s *server) crash(p *host.Plugin, block string) *host.Plugin {
	s.t.Helper()
	p.Kill()
	return s.start(block)
}

// refused with a sentence that has all these texts; returned.
func (s *server) refused(block string, texts ...string) string {
	s.t.Helper()
	p, data := s.load(block)
	err := p.Configure(scene.Domain, data)
	if err == nil {
		s.t.Fatalf("a start was not refused; wanted %q", texts)
	}
	message := status.Convert(err).Message()
	for _, text := range texts {
		if !strings.Contains(message, text) {
			s.t.Errorf("%q is not in: %v", text, err)
		}
	}
	scene.Must(s.t, p.Close())
	return message
}

// serves exactly these, each of which signs; by id, the fingerprint.
func (s *server) serves(p *host.Plugin, want map[string]string) {
	s.t.Helper()
	response, err := p.KeyManager().GetPublicKeys(s.t.Context(), &keymanagerv1.GetPublicKeysRequest{})
	scene.Must(s.t, err)
	if len(response.PublicKeys) != len(want) {
		s.t.Errorf("%d keys are served, want %d", len(response.PublicKeys), len(want))
	}
	for _, key := range response.PublicKeys {
		if key.Fingerprint != want[key.Id] {
			s.t.Errorf("%s is another key", key.Id)
		}
		scene.Sign(s.t, p, key)
	}
}

// served now; by id, the fingerprint.
func (s *server) served(p *host.Plugin) map[string]string {
	s.t.Helper()
	response, err := p.KeyManager().GetPublicKeys(s.t.Context(), &keymanagerv1.GetPublicKeysRequest{})
	scene.Must(s.t, err)
	found := map[string]string{}
	for _, key := range response.PublicKeys {
		found[key.Id] = key.Fingerprint
	}
	return found
}

func merged(maps ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range maps {
		for id, print := range m {
			all[id] = print
		}
	}
	return all
}

// change what is in the record: the server does not run.
func (s *server) change(what func(section map[string]any)) {
	s.t.Helper()
	path := filepath.Join(s.Dir, "hsm-id.keys")
	text, err := os.ReadFile(path)
	scene.Must(s.t, err)
	var document map[string]any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	scene.Must(s.t, decoder.Decode(&document))
	delete(document, "sha256")
	for _, section := range document["scopes"].(map[string]any) {
		what(section.(map[string]any))
	}
	compact, err := json.Marshal(document)
	scene.Must(s.t, err)
	document["sha256"] = fmt.Sprintf("%x", sha256.Sum256(compact))
	text, err = json.Marshal(document)
	scene.Must(s.t, err)
	scene.Write(s.t, path, string(text))
}

// used since long: the token's key of the id, as if it had signed a minute after it was made.
func (s *server) used(id string) {
	s.t.Helper()
	s.change(func(section map[string]any) {
		for _, key := range section["keys"].([]any) {
			key := key.(map[string]any)
			if key["state"] == "served" && strings.HasSuffix(key["label"].(string), "-"+id) {
				key["in_use"] = true
			}
		}
	})
}

// ---- the tests ----

// Rotated as SPIRE does it, with a restart after every step: every key is there, and signs.
func TestAServerMovesFromKeysJsonAndHasEveryKeyAtEveryStep(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A, jwtA)
	before := d.bytes(t)
	want := merged(d.print)
	p := s.start(d.block())
	s.serves(p, want)
	for _, id := range []string{x509B, x509A, "JWT-Signer-B", jwtA} {
		p = s.restart(p, d.block())
		s.serves(p, want)
		p = s.crash(p, d.block())
		s.serves(p, want)
		want[id] = scene.Generate(t, p, id, p256).Fingerprint
		s.serves(p, want)
		if _, there := d.print[id]; there {
			line := p.Logs.Wait(t, "moved to the token")
			if left := fmt.Sprint(d.left(want)); line.Fields["left_in_previous"] != left {
				t.Errorf("the log has %s left in previous, want %s", line.Fields["left_in_previous"], left)
			}
		}
		p = s.crash(p, d.block())
		s.serves(p, want)
	}
	p = s.restart(p, d.block())
	p.Logs.Wait(t, "no key is served from previous: the block can go")
	s.serves(p, want)
	p = s.restart(p, "")
	s.serves(p, want)
	if !bytes.Equal(before, d.bytes(t)) {
		t.Error("keys.json was written")
	}
}

// Killed while it makes a key: SPIRE's last word from it counts. Unheard, an id may lie on either
// side, and signs.
func TestAServerKilledWhileAKeyMovesServesTheKeyThatSpireKnows(t *testing.T) {
	t.Parallel()
	ids := make([]string, 8)
	for i := range ids {
		ids[i] = fmt.Sprintf("key-%d", i)
	}
	s, d := newServer(t), newDisk(t, ids...)
	want := merged(d.print)
	p := s.start(d.block())
	for i, id := range ids {
		told := make(chan string, 1)
		go func() {
			key, err := load.Generate(p, id, p256)
			if err != nil {
				told <- ""
				return
			}
			told <- key.Fingerprint
		}()
		time.Sleep(time.Duration(i*i) * time.Millisecond)
		p.Kill()
		print := <-told
		p = s.start(d.block())
		if print == "" { // either; never another afterwards
			want[id] = s.served(p)[id]
		} else {
			want[id] = print
		}
		s.serves(p, want)
	}
}

func TestTheBlockIsTakenOutTooEarly(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A, jwtA)
	p := s.start(d.block())
	s.serves(p, d.print)
	b := scene.Generate(t, p, x509B, p256).Fingerprint
	p.AwaitFigure(t, "pkcs11.keys{state=previous}", func(left float32) bool { return left == 2 })
	scene.Must(t, p.Close())
	s.refused("", x509A, "previous", "but SPIRE needs it")
	want := merged(d.print, map[string]string{x509B: b})
	p = s.start(d.block())
	s.serves(p, want)
	scene.Must(t, p.Close())
	code := regexp.MustCompile(`accept_loss = "([0-9a-f]{8})"`).FindStringSubmatch(s.refused("", "but SPIRE needs it"))
	if code == nil {
		t.Fatal("the refusal has no code")
	}
	p = s.start(fmt.Sprintf("accept_loss = %q\n", code[1]))
	s.serves(p, map[string]string{x509B: b})
	p = s.restart(p, "")
	s.serves(p, map[string]string{x509B: b})
}

// With an X.509 key of the token in use, what is left in previous is a blip.
func TestTheBlockIsTakenOutWhenSpireNeedsNoKeyOfItAnyMore(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A, jwtA)
	p := s.start(d.block())
	b := scene.Generate(t, p, x509B, p256).Fingerprint
	scene.Must(t, p.Close())
	s.used(x509B)
	p = s.start("")
	s.serves(p, map[string]string{x509B: b})
}

func TestASourceThatIsAwayFailsItsSignaturesAloneAndComesBack(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A)
	p := s.start(d.block())
	b := scene.Generate(t, p, x509B, p256)
	scene.Must(t, p.Close())
	scene.Must(t, os.Rename(d.path, d.path+".away"))
	p = s.start(d.block() + hasty)
	scene.Sign(t, p, b)
	a := &keymanagerv1.PublicKey{Id: x509A, Fingerprint: d.print[x509A]}
	err := load.Sign(p, a)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "previous") {
		t.Errorf("got %v; want UNAVAILABLE that names previous", err)
	}
	scene.Must(t, os.Rename(d.path+".away", d.path))
	scene.Eventually(t, "it signs again", func() bool {
		err := load.Sign(p, a)
		return err == nil || !strings.Contains(err.Error(), "previous")
	})
	s.serves(s.restart(p, d.block()), map[string]string{x509A: d.print[x509A], x509B: b.Fingerprint})
}

// The worker that reads keys.json waits in the kernel for a disk that does not answer; the token's
// keys, Configure and an orderly end have nothing to do with it.
func TestAHungDiskUnderKeysJsonStopsItsSignaturesAlone(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A, jwtA)
	hung := hungdisk.Mount(t, s.Dir+"/disk", "keys.json", string(d.bytes(t)))
	d.path = hung.File
	p, data := s.load(d.block() + hasty + "operation_timeout = \"1s\"\n")
	scene.Must(t, p.Configure(scene.Domain, data))
	b := scene.Generate(t, p, x509B, p256)
	want := merged(d.print, map[string]string{x509B: b.Fingerprint})
	s.serves(p, want)
	answer, err := p.KeyManager().GetPublicKey(t.Context(), &keymanagerv1.GetPublicKeyRequest{KeyId: x509A})
	scene.Must(t, err)
	hung.Hang()
	p.KillWorkers()
	<-hung.Asked()
	scene.Eventually(t, "the token's key signs", func() bool { return load.Sign(p, b) == nil })
	err = load.Sign(p, answer.PublicKey)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "previous") {
		t.Errorf("got %v; want UNAVAILABLE that names previous", err)
	}
	want[jwtA] = scene.Generate(t, p, jwtA, p256).Fingerprint
	scene.Must(t, p.Configure(scene.Domain, data))
	if found := s.served(p); !maps.Equal(found, want) {
		t.Errorf("served while the disk hangs: %v, want %v", found, want)
	}
	hung.Answer()
	scene.Eventually(t, "keys.json signs again", func() bool {
		return load.Sign(p, answer.PublicKey) == nil
	})
	s.serves(p, want)
	hung.Hang()
	p.KillWorkers()
	<-hung.Asked()
	go func() { // what is stuck in the kernel ends with the disk, and not before
		scene.Eventually(t, "the plugin ends beside a hung disk", p.Exited)
		hung.End()
	}()
	scene.Must(t, p.Close())
}

func TestASourceThatNeverWasThereRefusesTheStart(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.refused("previous { keys_file = \"/nowhere/keys.json\" }\n", "previous", "/nowhere/keys.json")
	s.serves(s.start(""), map[string]string{})
}

func TestADamagedKeysJsonRefusesTheStartAndNothingIsLost(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A, jwtA)
	whole := d.bytes(t)
	scene.Write(t, d.path, string(whole[:len(whole)-3]))
	s.refused(d.block(), "previous", d.path)
	scene.Write(t, d.path, string(whole))
	p := s.start(d.block())
	b := scene.Generate(t, p, x509B, p256).Fingerprint
	scene.Must(t, p.Close())
	scene.Write(t, d.path, string(whole[:len(whole)-3]))
	s.refused(d.block(), "previous", d.path)
	scene.Write(t, d.path, string(whole))
	s.serves(s.start(d.block()), merged(d.print, map[string]string{x509B: b}))
}

// Whoever tried us once and went back has old keys on the token.
func TestKeysThatTheTokenHasFromBeforeStayUnserved(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A, x509B)
	p := s.start("")
	scene.Generate(t, p, x509A, p256)
	scene.Generate(t, p, jwtA, p256)
	jwt := scene.Generate(t, p, jwtA, p256).Fingerprint
	scene.Must(t, p.Close())
	s.used(x509A)
	p = s.start(d.block())
	p.Logs.Wait(t, "key on the token is not served: its id is served from previous")
	want := merged(d.print, map[string]string{jwtA: jwt})
	s.serves(p, want)
	p = s.crash(p, d.block())
	s.serves(p, want)
	if labels := s.Labels(t); !strings.Contains(strings.Join(labels, " "), x509A) {
		t.Error("the token's key of before is gone")
	}
}

// A set that changed on the disk, before an X.509 key of the token was used, is adopted anew.
func TestAChangedSetIsAdoptedAnew(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A)
	p := s.start(d.block())
	scene.Generate(t, p, x509B, p256)
	scene.Must(t, p.Close())
	d.make(t, x509B)
	d.write(t)
	s.serves(s.start(d.block()), d.print)
}

// An older copy of keys.json comes back under a block that was left in: its keys would end all
// agents.
func TestAnOlderKeysJsonIsRefusedOnceTheTokenSigns(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A)
	p := s.start(d.block())
	b := scene.Generate(t, p, x509B, p256).Fingerprint
	a := scene.Generate(t, p, x509A, p256).Fingerprint
	scene.Must(t, p.Close())
	s.used(x509B)
	s.used(x509A)
	moved := map[string]string{x509A: a, x509B: b}
	p = s.start(d.block())
	s.serves(p, moved)
	scene.Must(t, p.Close())
	older := newDisk(t, x509A)
	scene.Write(t, d.path, string(older.bytes(t)))
	s.refused(d.block(), "previous", x509A, "take the block previous out", "accept_loss")
	s.serves(s.start(""), moved)
}

func TestAServerThatComesAgainSaysSoByTheCode(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A)
	p := s.start(d.block())
	scene.Generate(t, p, x509A, p256)
	scene.Must(t, p.Close())
	s.used(x509A)
	d.make(t, x509A)
	d.write(t)
	code := regexp.MustCompile(`accept_loss = "([0-9a-f]{8})"`).FindStringSubmatch(s.refused(d.block(), "comes again"))
	if code == nil {
		t.Fatal("the refusal has no code")
	}
	p = s.start(d.block() + fmt.Sprintf("accept_loss = %q\n", code[1]))
	s.serves(p, d.print)
	s.serves(s.restart(p, d.block()), d.print)
}

// With the record gone nobody knows what has moved.
func TestALostRecordIsNoReasonToAdoptAnew(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A)
	p := s.start(d.block())
	moved := map[string]string{x509A: scene.Generate(t, p, x509A, p256).Fingerprint}
	scene.Must(t, p.Close())
	for _, name := range []string{"hsm-id.keys", "hsm-id.keys~"} {
		scene.Must(t, os.RemoveAll(filepath.Join(s.Dir, name)))
	}
	s.refused(d.block(), "there is no record of what has moved", x509A, "accept_loss")
	s.serves(s.start(""), moved)
}

// What is adopted stands in the record before SPIRE hears of it.
func TestNothingIsAdoptedThatCannotBeWrittenDown(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A)
	nowhere := "record_file = \"/proc/hsm-id.keys\"\n"
	s.refused(nowhere+d.block(), "previous", "/proc/hsm-id.keys", "cannot be written")
}

// SPIRE configures anew while it runs: it knows the keys that are served, and must keep them.
func TestSpireConfiguresAnew(t *testing.T) {
	t.Parallel()
	s, d := newServer(t), newDisk(t, x509A)
	p := s.start("")
	b := scene.Generate(t, p, x509B, p256).Fingerprint
	want := map[string]string{x509B: b}
	err := p.Configure(scene.Domain, s.PluginData(quick+d.block()))
	if err == nil || !strings.Contains(err.Error(), "at a start") {
		t.Errorf("a block that is new was taken up without a start: %v", err)
	}
	s.serves(p, want)
	p = s.restart(p, d.block())
	want = merged(want, d.print)
	s.serves(p, want)
	scene.Must(t, p.Configure(scene.Domain, s.PluginData(quick+"max_sessions = 2\n"+d.block())))
	s.serves(p, want)
	err = p.Configure(scene.Domain, s.PluginData(quick))
	if err == nil || !strings.Contains(err.Error(), "put the block back") {
		t.Errorf("the block was taken out while SPIRE needs it: %v", err)
	}
	s.serves(p, want)
	want[x509A] = scene.Generate(t, p, x509A, p256).Fingerprint
	scene.Must(t, p.Configure(scene.Domain, s.PluginData(quick)))
	s.serves(p, want)
	s.serves(s.crash(p, ""), want)
}

// ---- from another token ----

func TestAServerMovesFromAnotherToken(t *testing.T) {
	for _, identity := range []string{"old-id", "hsm-id"} { // of its own, or kept
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			movesFromAnotherToken(t, identity)
		})
	}
}

func movesFromAnotherToken(t *testing.T, identity string) {
	s := newServer(t)
	s.Init(t, "old")
	old := fmt.Sprintf("token = \"pkcs11:token=old\"\npin_file = %q\nkey_identifier_file = %q\n",
		s.PINFile, filepath.Join(s.Dir, identity))
	setting := scene.Setting{Environ: s.Env(), Data: fmt.Sprintf("module = %q\n%s", softhsm.Module(), old)}
	p := setting.Ready(t)
	scene.Generate(t, p, x509A, p256)
	want := map[string]string{
		x509A: scene.Generate(t, p, x509A, p256).Fingerprint,
		jwtA:  scene.Generate(t, p, jwtA, keymanagerv1.KeyType_RSA_2048).Fingerprint,
	}
	s.serves(p, want)
	scene.Must(t, p.Close())
	block := fmt.Sprintf("previous {\nmodule = %q\n%s}\n", softhsm.Module(), old)
	p = s.start(block)
	s.serves(p, want)
	moved := merged(want, map[string]string{x509B: scene.Generate(t, p, x509B, p256).Fingerprint})
	moved[x509A] = scene.Generate(t, p, x509A, p256).Fingerprint
	p = s.crash(p, block)
	s.serves(p, moved)
	scene.Must(t, p.Close())
	if identity == "hsm-id" { // the record has moved on
		return
	}
	// The old token has all that it had.
	s.serves(setting.Ready(t), want)
}

func TestAnotherTokenThatIsAwayFailsItsSignaturesAloneAndComesBack(t *testing.T) {
	t.Parallel()
	s, away := newServer(t), softhsm.New(t)
	own, err := os.ReadDir(s.Tokens)
	scene.Must(t, err)
	s.Init(t, "old")
	old := fmt.Sprintf("module = %q\ntoken = \"pkcs11:token=old\"\npin_file = %q\nkey_identifier_file = %q\n",
		softhsm.Module(), s.PINFile, filepath.Join(s.Dir, "old-id"))
	setting := scene.Setting{Environ: s.Env(), Data: old}
	p := setting.Ready(t)
	a := scene.Generate(t, p, x509A, p256)
	scene.Must(t, p.Close())
	block := "previous {\n" + old + "}\n"
	p = s.start(block)
	b := scene.Generate(t, p, x509B, p256)
	scene.Must(t, p.Close())
	entries, err := os.ReadDir(s.Tokens)
	scene.Must(t, err)
	move := func(from, to string) {
		for _, entry := range entries {
			if entry.Name() != own[0].Name() {
				scene.Must(t, os.Rename(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())))
			}
		}
	}
	move(s.Tokens, away.Dir)
	p = s.start(block + hasty)
	scene.Sign(t, p, b)
	if err := load.Sign(p, a); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "previous") {
		t.Errorf("got %v; want UNAVAILABLE that names previous", err)
	}
	move(away.Dir, s.Tokens)
	scene.Eventually(t, "it signs again", func() bool { return load.Sign(p, a) == nil })
	s.serves(p, map[string]string{x509A: a.Fingerprint, x509B: b.Fingerprint})
}
