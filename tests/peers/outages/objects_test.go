package outages

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// ---- no room ----

func TestAFullTokenSaysSoAndGoesOnServingWhatItHas(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "", "")
	p, _, l := b.Busy(t, 4)
	b.module.Play(t, "profile full\n")
	for range 3 {
		_, err := load.Generate(p, "x509-CA-A", p256)
		expect(t, err, codes.ResourceExhausted, `failed to generate key "x509-CA-A"`, "CKR_DEVICE_MEMORY")
	}
	if n := len(b.Labels(t)); n != 1 {
		t.Errorf("%d keys on the full token", n)
	}
	l.Await(100)
	b.module.Play(t, "")
	scene.Generate(t, p, "x509-CA-B", p256)
	l.EndWithoutFailures()
	b.expectPairs(t, 2)
}

// A server whose upstream authority is away makes a key at each start, and ends.
func TestACrashLoopOnATokenWithRoomFor20ObjectsGoesOnMakingKeys(t *testing.T) {
	t.Parallel()
	const room = 20
	starts := either(6, 12)
	faults(t, starts)
	b := newFaulty(t, "", fmt.Sprintf("profile room %d\n", room))
	b.Data = withDefaults(b.Data)
	told := map[string]*keymanagerv1.PublicKey{}
	for range starts {
		p := b.Ready(t)
		found := served(t, p)
		for id, key := range told {
			if found[id].GetFingerprint() != key.Fingerprint {
				t.Errorf("%s is not the key that was made last", id)
			}
		}
		for _, id := range []string{"x509-CA-A", "x509-CA-B", "JWT-Signer-A"} {
			told[id] = scene.Generate(t, p, id, p256)
			scene.Sign(t, p, told[id])
		}
		p.Kill()
	}
	if n := len(b.named(t)); n > room {
		t.Errorf("%d objects on the token", n)
	}
	if starts*3*2 <= room {
		t.Error("the token was never full")
	}
}

// newSmall has its token on a disk of its own.
func newSmall(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, "")
	mounted := filepath.Join(b.Dir, "disk")
	mount(t, mounted, 512)
	if output, err := exec.Command("cp", "-a", b.Tokens+"/.", mounted).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, output)
	}
	b.Tokens = mounted
	scene.Write(t, b.Conf, fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", mounted))
	return b
}

func TestAFullDiskUnderTheTokenLosesNoKey(t *testing.T) {
	t.Parallel()
	b := newSmall(t)
	faults(t, 1)
	p, key, l := b.Busy(t, 4)
	filler := fill(t, b.Tokens)
	_, err := load.Generate(p, "x509-CA-B", p256)
	t.Logf("GenerateKey: %v", err)
	if code := status.Code(err); code != codes.Unavailable && code != codes.ResourceExhausted {
		t.Errorf("GenerateKey on a full disk: %v", err)
	}
	l.Await(100)
	scene.Must(t, os.Remove(filler))
	made := scene.Generate(t, p, "x509-CA-B", p256)
	l.EndWithoutFailures()
	scene.Sign(t, p, key, made)
	b.expectPairs(t, 2)
}

func TestAReadOnlyTokenDirectoryLosesNoKey(t *testing.T) {
	t.Parallel()
	b := newSmall(t)
	faults(t, 1)
	p := b.Ready(t)
	scene.Generate(t, p, "x509-CA-A", p256)
	key := scene.Generate(t, p, "x509-CA-A", p256) // what this one supersedes may have to stay for a while
	remount(t, b.Tokens, true)
	l := load.Start(t, p, 4, key)
	_, err := load.Generate(p, "x509-CA-B", p256)
	t.Logf("GenerateKey: %v", err)
	if code := status.Code(err); code != codes.Unavailable && code != codes.FailedPrecondition && code != codes.DeadlineExceeded {
		t.Errorf("GenerateKey on a read-only disk: %v", err)
	}
	l.Await(100)
	remount(t, b.Tokens, false)
	made := scene.Generate(t, p, "x509-CA-B", p256)
	l.EndWithoutFailures()
	scene.Sign(t, p, key, made)
	unload(t, p)
	p = b.Ready(t)
	found := served(t, p)
	if len(found) != 2 || found[key.Id].Fingerprint != key.Fingerprint || found[made.Id].Fingerprint != made.Fingerprint {
		t.Errorf("served after a restart: %v", found)
	}
	b.expectPairs(t, 2)
}

// ---- slow and lagging tokens ----

func TestSlowKeyGenerationCostsFailedCallsButExactlyOneKey(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "", "")
	p := b.Ready(t)
	key := scene.Generate(t, p, "x509-CA-A", p256)
	b.module.Play(t, "profile slowgen %d\n", either(70_000, 240_000))
	l := load.Start(t, p, 4, key)
	failed := 0
	var made string
	for start := time.Now(); made == ""; time.Sleep(500 * time.Millisecond) {
		if time.Since(start) > 6*time.Minute {
			t.Fatal("no key after six minutes")
		}
		next, err := load.Generate(p, "JWT-Signer-A", keymanagerv1.KeyType_RSA_4096)
		if err == nil {
			made = next.Fingerprint
			scene.Sign(t, p, next)
			break
		}
		failed++
		expect(t, err, codes.DeadlineExceeded, "the next request for this key takes its result")
	}
	l.EndWithoutFailures()
	if failed == 0 {
		t.Error("no call failed: the token was not slow")
	}
	t.Logf("%d calls for a key failed, then there was one", failed)
	if n := p.Logs.Count("key made"); n != 2 {
		t.Errorf("%d keys were made", n)
	}
	b.expectPairs(t, 2)
}

func TestKeysThatShowUpLateAreServedAndNotMadeTwice(t *testing.T) {
	t.Parallel()
	faults(t, 4)
	b := newFaulty(t, "", "")
	p := b.Ready(t)
	scene.Generate(t, p, "x509-CA-A", p256)
	failed := 0
	for lag := 1; lag <= 4; lag++ {
		b.module.Play(t, "profile lag %d\n", lag)
		id := fmt.Sprintf("key-%d", lag)
		key, err := load.Generate(p, id, p256)
		if err != nil {
			failed++
			t.Errorf("a lag of %d searches: %v", lag, err)
			continue
		}
		scene.Sign(t, p, key)
	}
	t.Logf("%d failed calls", failed)
	keys := served(t, p)
	unload(t, p)
	b.module.Play(t, "")
	p = b.Ready(t)
	for id, key := range served(t, p) {
		if keys[id] == nil || keys[id].Fingerprint != key.Fingerprint {
			t.Errorf("%s is another key after a restart", id)
		}
		scene.Sign(t, p, key)
	}
	b.expectPairs(t, 5)
}

// ---- odd objects with our labels ----

// label of a served key, from the log.
func labelOf(t *testing.T, p *host.Plugin, id string) string {
	t.Helper()
	label := ""
	scene.Eventually(t, "the log tells of "+id, func() bool {
		for _, line := range p.Logs.Lines() {
			if (line.Message == "key made" || line.Message == "key adopted") && line.Fields["key_id"] == id {
				label = line.Fields["label"]
			}
		}
		return label != ""
	})
	return label
}

// newer is the label with a generation so many later than the given one.
func newer(t *testing.T, label string, by int) string {
	t.Helper()
	const digits = "0123456789abcdefghijklmnopqrstuv"
	generation := []byte(strings.Split(label, "-")[2])
	for range by {
		for i := len(generation) - 1; i >= 0; i-- {
			next := strings.IndexByte(digits, generation[i]) + 1
			generation[i] = digits[next%len(digits)]
			if next < len(digits) {
				break
			}
		}
	}
	return strings.Replace(label, strings.Split(label, "-")[2], string(generation), 1)
}

// A label's bytes are not in a private object's file in clear: the private half is found by
// what is added with it.
func (b *bench) objects(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	paths, err := filepath.Glob(filepath.Join(b.Tokens, "*", "*.object"))
	scene.Must(t, err)
	for _, path := range paths {
		found[path] = true
	}
	return found
}

// halves of a key that `make` makes: the files of its private and public object.
func (b *bench) halves(t *testing.T, public string, make func()) (private, half string) {
	t.Helper()
	before := b.objects(t)
	make()
	for path := range b.objects(t) {
		text, err := os.ReadFile(path)
		scene.Must(t, err)
		switch {
		case before[path] || filepath.Base(path) == "token.object":
		case strings.Contains(string(text), public): // its label is not encrypted
			half = path
		default:
			private = path
		}
	}
	if private == "" || half == "" {
		t.Fatalf("the key's objects are %q and %q", private, half)
	}
	return private, half
}

func TestADuplicatedKeyIsListedAndNotDestroyedAndOthersAreServed(t *testing.T) {
	t.Parallel()
	faults(t, 2)
	b := newBench(t, "startup_wait = \"2s\"\n")
	p := b.Ready(t)
	other := scene.Generate(t, p, "x509-CA-B", p256)
	private, public := b.halves(t, "x509-CA-A", func() { scene.Generate(t, p, "x509-CA-A", p256) })
	key := served(t, p)["x509-CA-A"]
	copies := func(path string) {
		text, err := os.ReadFile(path)
		scene.Must(t, err)
		name := filepath.Join(filepath.Dir(path), "00000000-0000-0000-0000-"+strings.Split(filepath.Base(path), "-")[4])
		scene.Must(t, os.WriteFile(name, text, 0o600))
		scene.Must(t, os.WriteFile(strings.TrimSuffix(name, ".object")+".lock", nil, 0o600))
	}
	copies(private)
	l := load.Start(t, p, 4, key, other) // it was proven when it was one
	p.KillWorkers()
	scene.Eventually(t, "the next worker looks for it", func() bool { return status.Code(load.Sign(p, key)) == codes.FailedPrecondition })
	l.Await(20)
	l.EndFailing("more than one private key", codes.FailedPrecondition)
	expectEnds(t, p, 1)
	unload(t, p)
	p = b.Ready(t)
	found := served(t, p)
	if found["x509-CA-A"] == nil || found["x509-CA-B"] == nil { // else every agent would end
		t.Errorf("served: %v", found)
	}
	line := p.Logs.Wait(t, "key cannot be proven now")
	if line.Fields["key_id"] != "x509-CA-A" {
		t.Errorf("said: %v", line)
	}
	scene.Sign(t, p, other)
	made := scene.Generate(t, p, "x509-CA-A", p256) // what SPIRE does then
	scene.Sign(t, p, made, other)
	if n := b.privateKeys(t); n != 4 {
		t.Errorf("%d private keys on the token, want the two twins, the other and the new one", n)
	}
	unload(t, p)

	// a public half that is there twice does no harm
	copies(public)
	b2 := *b
	p = b2.Ready(t)
	if found := served(t, p); found["x509-CA-A"] == nil || found["x509-CA-A"].Fingerprint != made.Fingerprint {
		t.Errorf("served: %v", found)
	}
}

func (b *bench) privateKeys(t *testing.T) int {
	t.Helper()
	return strings.Count(b.Tool(t, "--list-objects", "--type", "privkey"), "Private Key Object")
}

// Half a key may be what SPIRE signs with: anybody could have destroyed a public half, and a token
// may not show a private one just now. Both stay until there is a newer key.
func TestHalvesOfOurKeysStayAndOthersAreServed(t *testing.T) {
	t.Parallel()
	faults(t, 3)
	b := newBench(t, "startup_wait = \"2s\"\n")
	b.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "somebody else's", "--id", "01")
	p := b.Ready(t)
	other := scene.Generate(t, p, "x509-CA-B", p256)
	_, public := b.halves(t, "x509-CA-A", func() { scene.Generate(t, p, "x509-CA-A", p256) })
	private, _ := b.halves(t, "JWT-Signer-A", func() { scene.Generate(t, p, "JWT-Signer-A", rsa2048) })
	unload(t, p)
	scene.Must(t, os.Remove(public))
	scene.Must(t, os.Remove(private))
	p = b.Ready(t)
	found := served(t, p)
	if len(found) != 2 || found[other.Id] == nil || found["x509-CA-A"] == nil { // SPIRE needs that one
		t.Errorf("served: %v", found)
	}
	if line := p.Logs.Wait(t, "key cannot be proven now"); line.Fields["key_id"] != "x509-CA-A" {
		t.Errorf("said: %v", line)
	}
	if line := p.Logs.Wait(t, "key is gone, or cannot be proven"); line.Fields["key_id"] != "JWT-Signer-A" {
		t.Errorf("said: %v", line)
	}
	if !strings.Contains(b.Tool(t, "--list-objects", "--type", "pubkey"), "JWT-Signer-A") {
		t.Error("the public half of JWT-Signer-A was destroyed")
	}
	if n := b.privateKeys(t); n != 3 {
		t.Errorf("%d private keys on the token, want the other, somebody else's, and the one without a public half", n)
	}
	scene.Sign(t, p, other)
	made := scene.Generate(t, p, "x509-CA-A", p256)
	signer := scene.Generate(t, p, "JWT-Signer-A", rsa2048)
	scene.Sign(t, p, made, signer)
	unload(t, p)
	p = b.Ready(t)
	scene.Sign(t, p, other, made, signer)
	b.expectPairs(t, 3+1+1) // with the halves, which a person may see to
}

// imported keys: made elsewhere, by somebody who knows the PIN.
func (b *bench) importKey(t *testing.T, label, id string, algorithm ...string) {
	t.Helper()
	base := filepath.Join(b.Dir, "imported")
	for _, args := range [][]string{
		append(append([]string{"genpkey"}, algorithm...), "-out", base+".pem"),
		{"pkey", "-in", base + ".pem", "-outform", "DER", "-out", base + ".der"},
		{"pkey", "-in", base + ".pem", "-pubout", "-outform", "DER", "-out", base + ".pub"},
	} {
		if output, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v %s", args, err, output)
		}
	}
	for _, half := range [][2]string{{"privkey", ".der"}, {"pubkey", ".pub"}} {
		args := []string{"--write-object", base + half[1], "--type", half[0], "--usage-sign", "--label", label}
		if id != "" {
			args = append(args, "--id", id)
		}
		b.Tool(t, args...)
	}
}

func TestObjectsWithHostileAttributesAreNeitherServedNorDestroyed(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	p := b.Ready(t)
	key := scene.Generate(t, p, "x509-CA-A", p256)
	jwt := scene.Generate(t, p, "JWT-Signer-A", rsa2048)
	label, prefix := labelOf(t, p, key.Id), strings.TrimSuffix(labelOf(t, p, key.Id), key.Id)
	unload(t, p)

	ec := []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}
	curve := []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"}
	small := []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"}
	id := hex.EncodeToString([]byte("0123456789abcdef"))
	keys := []struct {
		what, label, id string
		algorithm       []string
	}{
		{"imported, newer than ours", newer(t, label, 1), id, ec},
		{"of a wrong curve", newer(t, label, 2), id, curve},
		{"of a wrong size", newer(t, label, 3), id, small},
		{"without an id", newer(t, label, 4), "", ec},
		{"with a huge id", newer(t, label, 5), strings.Repeat("ab", 90), ec},
		{"with a huge label", prefix + strings.Repeat("x", 5000), id, ec},
		{"with a key id that is no UTF-8", prefix + "_ff_fe", id, ec},
		{"with a key id that is not as we write it", prefix + "x509_2dCA", id, ec},
		{"with half a label", strings.TrimSuffix(prefix, "-"), id, ec},
		{"of a format to come", strings.Replace(label, "sp1-", "sp2-", 1), id, ec},
		{"of another trust domain", strings.Replace(label, label[4:12], "00000000", 1), id, ec},
		{"under a new key id", prefix + "planted", id, ec},
	}
	faults(t, len(keys)+1)
	for _, k := range keys {
		b.importKey(t, k.label, k.id, k.algorithm...)
	}
	scene.Write(t, filepath.Join(b.Dir, "data"), "no key at all")
	b.Tool(t, "--write-object", filepath.Join(b.Dir, "data"), "--type", "data", "--label", newer(t, label, 6))
	before := b.named(t)

	for range 2 {
		p = b.Ready(t)
		found := served(t, p)
		if len(found) != 2 || found[key.Id].Fingerprint != key.Fingerprint || found[jwt.Id].Fingerprint != jwt.Fingerprint {
			t.Errorf("served: %v", found)
		}
		scene.Sign(t, p, key, jwt)
		planted := false
		for _, line := range p.Logs.Lines() {
			planted = planted || (line.Message == "key on the token is not served" && line.Fields["key_id"] == "planted")
		}
		if !planted {
			t.Error("nothing was said of a planted key")
		}
		time.Sleep(time.Second) // of clean-up, which must find nothing to do
		unload(t, p)
	}
	after := b.named(t)
	for name, count := range before {
		if after[name] != count {
			t.Errorf("%d objects, of %d before: %.100s", after[name], count, name)
		}
	}
	p = b.Ready(t)
	scene.Sign(t, p, scene.Generate(t, p, key.Id, p256), jwt)
	unload(t, p)
	p = b.Ready(t)
	if found := served(t, p); len(found) != 2 || found[key.Id].Fingerprint == key.Fingerprint {
		t.Errorf("after a rotation: %v", found)
	}
	// now some are older generations of ours, which go; what was never ours stays. SoftHSM lists
	// others while one of them goes, but not always all
	unload(t, p)
	after = b.named(t)
	for _, k := range keys[3:] {
		if name := "Private " + k.label; after[name] < before[name] { // a new key's label may be the same
			t.Errorf("%s: %d objects, of %d before", k.what, after[name], before[name])
		}
	}
}

// Whoever knows the PIN can plant the last generation there is. No key is lost by that, no
// new one can be made either, and the error says what to look for.
func TestAPlantedKeyOfTheLastGenerationStopsNothing(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newBench(t, "")
	p := b.Ready(t)
	key := scene.Generate(t, p, "x509-CA-A", p256)
	label := labelOf(t, p, key.Id)
	unload(t, p)
	b.importKey(t, strings.Replace(label, strings.Split(label, "-")[2], "vvvvvv", 1), "30313233343536373839616263646566",
		"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	p = b.Ready(t)
	scene.Sign(t, p, key)
	scene.Sign(t, p, scene.Generate(t, p, key.Id, p256))
	p.Logs.Wait(t, "two servers share one identity")
}

// With one session the census takes turns with whatever else the token is asked for.
func TestARivalIsFoundAmongManyObjectsOfOthersBesideSignaturesAndNewKeys(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "max_sessions = 1\n", "")
	p := b.Ready(t)
	key := scene.Generate(t, p, "x509-CA-A", p256)
	label := labelOf(t, p, key.Id)
	unload(t, p)
	b.importKey(t, strings.Replace(label, strings.Split(label, "-")[2], "vvvvvv", 1), "30313233343536373839616263646566",
		"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	b.module.Play(t, "profile crowd 1500\nC_GetAttributeValue before sleep 3\n")
	p = b.Ready(t)
	if _, found := p.Logs.Find("two servers share one identity"); found {
		t.Error("the start has found the rival: the crowd is too small for this test")
	}
	l := load.Start(t, p, 2, key)
	scene.Generate(t, p, "x509-CA-B", p256)
	p.Logs.Wait(t, "two servers share one identity")
	l.EndWithoutFailures()
}
