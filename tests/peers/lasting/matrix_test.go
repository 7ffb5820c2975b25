package lasting_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// In a script MS is how long the trouble lasts, WHOM whom it hits.
type row struct{ name, script, options string }

const (
	hasty  = "operation_timeout = \"1s\"\ngenerate_timeout = \"10s\"\n"
	always = "verify_signatures = \"always\"\n"

	// What makes a worker look for its keys, so that it meets what hides them.
	lost = "\nC_SignInit before CKR_KEY_HANDLE_INVALID for MS on WHOM"
)

// One key's trouble, or that of them all.
var ofKeys = []row{
	{"signatures fail", "C_Sign before CKR_DEVICE_ERROR for MS on WHOM", ""},
	{"half of the signatures fail", "C_Sign before CKR_FUNCTION_FAILED percent 50 for MS on WHOM", ""},
	{"signatures fail, for no reason", "C_SignInit before CKR_GENERAL_ERROR for MS on WHOM", ""},
	{"handles are void", "C_SignInit before CKR_KEY_HANDLE_INVALID for MS on WHOM", ""},
	{"the login is lost", "C_SignInit before CKR_USER_NOT_LOGGED_IN for MS on WHOM", ""},
	{"the library crashes", "C_Sign before segv for MS on WHOM", ""},
	{"the library aborts", "C_SignInit before abort for MS on WHOM", ""},
	{"the library hangs", "C_Sign before hang for MS on WHOM", hasty},
	{"the library is slow", "C_Sign before sleep 200 for MS on WHOM", ""},
	{"signatures are wrong", "C_Sign before bend for MS on WHOM", always},
	{"signatures are short", "C_Sign before shorten for MS on WHOM", ""},
	{"private halves do not show", "profile hide private MS WHOM" + lost, ""},
	{"public halves do not show", "profile hide public MS WHOM" + lost, ""},
	{"keys do not show", "profile hide both MS WHOM" + lost, ""},
	{"private halves cannot be read", "profile unreadable CKR_DEVICE_ERROR private MS WHOM" + lost, ""},
	{"public halves cannot be read", "profile unreadable CKR_OBJECT_HANDLE_INVALID public MS WHOM" + lost, ""},
	{"keys cannot be read", "profile unreadable CKR_GENERAL_ERROR both MS WHOM" + lost, ""},
}

// The token's, or its library's, trouble.
var ofAll = []row{
	{"handles become those of other keys", "profile renumber 100", always},
	{"searches fail", "C_FindObjects before CKR_DEVICE_ERROR for MS\nC_SignInit before CKR_KEY_HANDLE_INVALID for MS", ""},
	{"a search crashes", "C_FindObjects before segv for MS\nC_SignInit before CKR_KEY_HANDLE_INVALID for MS", ""},
	{"attributes cannot be read", "C_GetAttributeValue before CKR_FUNCTION_FAILED for MS", ""},
	{"no session opens", "C_OpenSession before CKR_SESSION_COUNT for MS\nC_Sign before CKR_SESSION_HANDLE_INVALID for MS", ""},
	{"no login succeeds", "C_Login before CKR_DEVICE_REMOVED for MS\nC_Sign before CKR_DEVICE_ERROR for MS", ""},
	{"a login hangs", "C_Login before hang for MS", hasty},
	{"everything fails", "* before CKR_DEVICE_ERROR for MS", ""},
	{"key pairs fail", "C_GenerateKeyPair before CKR_DEVICE_ERROR for MS", ""},
	{"key pairs fail, and are made", "C_GenerateKeyPair after CKR_GENERAL_ERROR for MS", ""},
	{"a key pair crashes the library", "C_GenerateKeyPair before segv for MS", ""},
	{"a key pair crashes the library, and is made", "C_GenerateKeyPair after abort for MS", ""},
	{"key pairs are slow", "C_GenerateKeyPair before sleep 400 for MS", ""},
}

// What the plugin is at while the trouble begins; it signs all the while.
var phases = []struct {
	name  string
	begin func(*ordeal) error
}{
	{"running", func(*ordeal) error { return nil }},
	{"rotating", (*ordeal).rotate},
	{"its worker is replaced", func(o *ordeal) error { o.KillWorkers(); return nil }},
	{"reconfigured", (*ordeal).reconfigure},
}

// ordeal of one plugin: one kind of trouble for one scope, in each phase and for each length.
type ordeal struct {
	*troubled
	lasting bool // the script knows no end of its own
	t       *testing.T
	token   *softhsm.Token
	setting scene.Setting
	load    *load.Load
	keys    fingerprints
	labels  []string
}

const rotated = "x509-CA-B"

func newOrdeal(t *testing.T, options string) *ordeal {
	t.Helper()
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	// nothing goes before its day, however often a key is made anew
	data := strings.Replace(module.In(token.PluginData(options)), "destroy_superseded_after = 0\n", "keep_condemned = 32\n", 1)
	o := &ordeal{t: t, token: token, keys: fingerprints{},
		setting: scene.Setting{Data: data, Environ: append(token.Env(), module.Env()...)}}
	o.troubled = &troubled{Plugin: o.setting.Ready(t), module: module, begun: time.Now()}
	keys := o.troubled.keys(t)
	for _, key := range append(keys, scene.Generate(t, o.Plugin, rotated, keymanagerv1.KeyType_EC_P256)) {
		o.keys[key.Id] = key.Fingerprint
	}
	o.load = load.New(t, o.Plugin, 30*time.Millisecond)
	o.load.Sign(4, keys...)
	o.load.Round()
	return o
}

// reconfigure: the new state has a supervisor of its own, with three starts of its own.
func (o *ordeal) reconfigure() error {
	o.spare += 3
	return o.Configure(scene.Domain, o.setting.Data)
}

// rotate a key, and sign with the new one.
func (o *ordeal) rotate() error {
	key, err := load.Generate(o.Plugin, rotated, keymanagerv1.KeyType_EC_P256)
	if err != nil {
		return fmt.Errorf("GenerateKey: %w", err)
	}
	o.keys[rotated] = key.Fingerprint
	return load.Sign(o.Plugin, key)
}

// suffer the script for so long, from the beginning of the phase. No call may fail that is made
// meanwhile: each has many seconds left when the trouble is over.
func (o *ordeal) suffer(t *testing.T, script string, milliseconds int, begin func(*ordeal) error) {
	counted(t)
	o.labels = o.token.Labels(t)
	o.module.Play(t, "%s", script)
	ended := make(chan error, 1)
	go func() { ended <- begin(o) }()
	time.Sleep(time.Duration(milliseconds) * time.Millisecond)
	if o.lasting {
		o.module.Play(t, "")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	o.load.Round()
	for _, err := range o.load.Failures() {
		t.Error(err)
	}
	o.module.Play(t, "")
	o.destroyedNone(t)
}

// destroyedNone but what was half-made in the trouble of an earlier row, and never served.
func (o *ordeal) destroyedNone(t *testing.T) {
	t.Helper()
	left := o.token.Labels(t)
	for _, line := range o.Logs.Lines() {
		if line.Message == "half-made key cleared away" {
			left = append(left, line.Fields["label"])
		}
	}
	for _, label := range o.labels {
		if !slices.Contains(left, label) {
			t.Errorf("%s was destroyed", label)
		}
	}
}

// end of it: the next start serves what this one did.
func (o *ordeal) end() {
	o.t.Helper()
	o.load.End()
	o.bounded(o.t)
	scene.Must(o.t, o.Close())
	p := o.setting.Ready(o.t)
	serves(o.t, p, o.keys)
	// what was half-made in the trouble may be cleared away only now
	saysNone(o.t, p, "key is gone", "two servers share one identity", "destroyed")
	scene.Must(o.t, p.Close())
}

// Of the long ones, in the short run, each kind of trouble has one, and each phase its share.
func (r row) inEachPhase(t *testing.T, scope string, number int, filled *strings.Replacer) {
	t.Parallel()
	o := newOrdeal(t, r.options)
	o.lasting = !strings.Contains(r.script, "MS")
	for i, phase := range phases {
		for _, milliseconds := range lasts() {
			if !long && milliseconds >= 3000 && number%len(phases) != i {
				continue
			}
			script := strings.ReplaceAll(filled.Replace(r.script), "MS", strconv.Itoa(milliseconds))
			name := fmt.Sprintf("%s of %s for %d ms, %s", r.name, scope, milliseconds, phase.name)
			t.Run(name, func(t *testing.T) { o.suffer(t, script, milliseconds, phase.begin) })
		}
	}
	o.end()
}

func TestTroubleThatLastsFailsNoCallAndLosesNoKey(t *testing.T) {
	one, all := strings.NewReplacer("WHOM", "x509-CA"), strings.NewReplacer(" on WHOM", "", " WHOM", "")
	for i, r := range ofKeys {
		t.Run(r.name+", one key's", func(t *testing.T) { r.inEachPhase(t, "one key", i, one) })
	}
	for i, r := range slices.Concat(ofKeys, ofAll) {
		t.Run(r.name+", all keys'", func(t *testing.T) { r.inEachPhase(t, "all", i+1, all) })
	}
}
