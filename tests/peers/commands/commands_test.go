// Package commands_test runs the operators' commands of the real binary on a real SoftHSM
// token: check and keys here, prune and bundle show in files of their own.
package commands_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/softhsm"
)

const (
	fine   = 0
	wrong  = 1
	cannot = 2
)

// scene is a token and the file with its plugin_data.
type scene struct {
	*testing.T
	token *softhsm.Token
	data  string
	env   []string
}

func newScene(t *testing.T, options string) *scene {
	token := softhsm.New(t)
	s := &scene{T: t, token: token, data: filepath.Join(token.Dir, "plugin_data"), env: token.Env()}
	s.write(s.data, token.PluginData(options))
	return s
}

// faulty is a scene whose token fails by this script.
func faulty(t *testing.T, options, script string) *scene {
	s := newScene(t, options)
	module := filepath.Join(filepath.Dir(host.Binary(t)), "tests", "faulty.so")
	path := filepath.Join(s.token.Dir, "script")
	s.write(path, script+"\n")
	s.write(s.data, strings.Replace(s.token.PluginData(options), softhsm.Module(), module, 1))
	s.env = append(s.env, "FAULTY_MODULE="+softhsm.Module(), "FAULTY_SCRIPT="+path)
	return s
}

func (s *scene) write(path, text string) {
	s.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

// run the binary; the exit status must be this one. The PIN is in no output, ever.
func (s *scene) run(status int, args ...string) (stdout, stderr string) {
	s.Helper()
	var out, complaints bytes.Buffer
	cmd := exec.Command(host.Binary(s), args...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.Fatal(err)
	}
	if cmd.ProcessState.ExitCode() != status {
		s.Fatalf("%v: %v, not %d\n%s%s", args, cmd.ProcessState, status, &out, &complaints)
	}
	if strings.Contains(out.String()+complaints.String(), "WRONG-PIN") {
		s.Fatalf("the PIN is shown:\n%s%s", &out, &complaints)
	}
	return out.String(), complaints.String()
}

// command runs a command with this plugin_data and trust domain example.org.
func (s *scene) command(status int, name string, args ...string) string {
	s.Helper()
	stdout, stderr := s.run(status, append([]string{name, "--config", s.data, "--trust-domain", "example.org"}, args...)...)
	return stdout + stderr
}

func (s *scene) contains(text string, parts ...string) {
	s.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			s.Fatalf("no %q in:\n%s", part, text)
		}
	}
}

// makeIn a running plugin a key; its fingerprint.
func (s *scene) makeIn(p *host.Plugin, id string) string {
	s.Helper()
	response, err := p.KeyManager().GenerateKey(context.Background(),
		&keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keymanagerv1.KeyType_EC_P256})
	if err != nil {
		s.Fatal(err)
	}
	return response.PublicKey.Fingerprint
}

// generate keys as a server does.
func (s *scene) generate(trustDomain string, ids ...string) map[string]string {
	s.Helper()
	p := host.Start(s, host.Options{Type: "KeyManager", Env: s.token.Env()})
	if err := p.Configure(trustDomain, s.token.PluginData("")); err != nil {
		s.Fatal(err)
	}
	fingerprints := map[string]string{}
	for _, id := range ids {
		fingerprints[id] = s.makeIn(p, id)
	}
	if err := p.Close(); err != nil {
		s.Fatal(err)
	}
	return fingerprints
}

// ---- the command line ----

func TestMistakesOnTheCommandLineAreNamed(t *testing.T) {
	s := newScene(t, "")
	for _, row := range []struct {
		args []string
		says string
	}{
		{[]string{"check"}, "--config FILE is required"},
		{[]string{"check", "--config"}, "missing value of option"},
		{[]string{"check", "--confg", "x"}, `no option "--confg"`},
		{[]string{"check", "--json", "--config", "x"}, `no option "--json"`},
		{[]string{"keys", "--json=1"}, "no value is expected"},
		{[]string{"keys", "token"}, `unexpected "token"`},
		{[]string{"check", "--config", s.data}, "--trust-domain"},
		{[]string{"check", "--config", "/nowhere"}, `cannot open "/nowhere"`},
		{[]string{"check", "-config=/nowhere"}, `cannot open "/nowhere"`},
		{[]string{"check", "-", "--config", "x"}, `unexpected "-"`},
		{[]string{"chek", "--config", s.data}, `no command "chek"`},
		{[]string{"--config", s.data, "check"}, `no command "--config"`},
		{[]string{"bundle"}, "bundle show FILE"},
		{[]string{"bundle", "show", "/nowhere"}, `cannot open "/nowhere"`},
		{[]string{"prune", "--config", s.data, "--trust-domain=x", "--older-than", "1h"}, "24h or more"},
		{[]string{"prune", "--config", s.data, "--trust-domain=x", "--other-servers", "--server-id=a"}, "--other-servers"},
	} {
		stdout, stderr := s.run(cannot, row.args...)
		s.contains(stderr, row.says)
		if stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: more than one sentence: %s%s", row.args, stdout, stderr)
		}
	}
}

func TestEveryCommandHasItsHelp(t *testing.T) {
	s := newScene(t, "")
	all, _ := s.run(fine, "--help")
	for _, way := range []string{"-help", "-h", "help"} {
		if same, _ := s.run(fine, way); same != all {
			t.Errorf("%s is not --help:\n%s", way, same)
		}
	}
	for _, name := range []string{"check", "keys", "prune", "bundle", "evidence", "bench"} {
		s.contains(all, "spire-hsm "+name)
		help, _ := s.run(fine, name, "--help")
		s.contains(help, "usage: spire-hsm "+name, "exit status")
	}
}

// ---- check ----

func TestCheckFindsAGoodTokenFine(t *testing.T) {
	s := newScene(t, "")
	output := s.command(fine, "check", "--all")
	s.contains(output, "the token has all that SPIRE needs", `"spire"`)
	for _, name := range []string{"ec-p256", "ec-p384", "rsa-2048", "rsa-4096"} {
		s.contains(output, "trial "+name)
	}
	if strings.Count(output, "destroyed, and no longer found") != 4 || strings.Contains(output, "MISSING") {
		t.Fatal(output)
	}
	if left := s.token.Labels(t); len(left) != 0 {
		t.Fatalf("left on the token: %v", left)
	}
	if _, err := os.Stat(filepath.Join(s.token.Dir, "hsm-id")); err == nil {
		t.Fatal("check has made an identity")
	}
}

func TestCheckSaysHowLongAWalkOverTheTokenTakes(t *testing.T) {
	s := newScene(t, "")
	s.contains(s.command(fine, "check", "--no-trial"), "read in 0.")
	if os.Getenv("LONG") == "" {
		return
	}
	s = faulty(t, "", "profile crowd 400\nC_GetAttributeValue before sleep 26")
	s.contains(s.command(fine, "check", "--no-trial"), "160 foreign", "read in 1", "reading all objects takes long")
}

func TestCheckReadsTheServersOwnConfiguration(t *testing.T) {
	s := newScene(t, "")
	conf := filepath.Join(s.token.Dir, "server.conf")
	s.write(conf, `server { trust_domain = "example.org" ca_key_type = "ec-p384" jwt_key_type = "rsa-2048" }
plugins {
    DataStore "sql" { plugin_data { connection_string = "${SOMEWHERE}/x" } }
    KeyManager "hsm" { plugin_cmd = "/usr/libexec/spire-hsm" plugin_data_file = "`+s.data+`" }
}`)
	output, _ := s.run(fine, "check", "--config", conf, "--expand-env")
	s.contains(output, "trial ec-p384", "trial rsa-2048")
	if strings.Contains(output, "trial ec-p256") {
		t.Fatal(output)
	}
	_, stderr := s.run(cannot, "check", "--config", conf)
	s.contains(stderr, "--expand-env")
}

func TestCheckSaysThatTheFirstStartCannotMakeTheIdentity(t *testing.T) {
	s := newScene(t, "")
	s.contains(s.command(fine, "check", "--no-trial"), "the first start makes it")
	folder := filepath.Join(s.token.Dir, "absent")
	s.write(s.data, strings.Replace(s.token.PluginData(""), s.token.Dir+"/hsm-id", folder+"/hsm-id", 1))
	s.contains(s.command(wrong, "check", "--no-trial"), "MISSING", "key_identifier_file", folder+": No such file")
}

func TestCheckSaysThatTheTokenIsNotThere(t *testing.T) {
	s := newScene(t, "")
	s.write(s.data, strings.Replace(s.token.PluginData(""), "token=spire", "token=other", 1))
	s.contains(s.command(wrong, "check"), "MISSING", "is not there", "pkcs11-tool")
}

func TestCheckSaysThatThePINIsWrongAndDoesNotTryItAgain(t *testing.T) {
	s := newScene(t, "")
	s.write(s.token.PINFile, "WRONG-PIN\n")
	s.contains(s.command(wrong, "check"), "MISSING", "CKR_PIN_INCORRECT")
	s.contains(s.command(wrong, "check"), "MISSING", "the PIN in file ", " was refused", "the token said so before")
	s.write(s.token.PINFile, s.token.PIN+"\n")
	s.command(fine, "check")
}

func TestWhoIsNotTheServersUserIsToldToBe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make another user's file")
	}
	s := newScene(t, "")
	identity := filepath.Join(s.token.Dir, "hsm-id")
	s.write(identity, "server-a")
	for _, path := range []string{s.token.PINFile, identity} {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		s.contains(s.command(cannot, "keys"), "run this as user 12345", path)
		s.contains(s.command(wrong, "check"), "MISSING", "run this as user 12345", path)
		if err := os.Chown(path, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckSaysThatTheTokenIsReadOnly(t *testing.T) {
	s := faulty(t, "", "C_GenerateKeyPair before CKR_TOKEN_WRITE_PROTECTED")
	s.contains(s.command(wrong, "check"), "MISSING", "cannot be made", "CKR_TOKEN_WRITE_PROTECTED")
	s.contains(s.command(fine, "check", "--no-trial"), "not made")
}

func TestCheckSaysWhatOfTheTokensWordIsNotSo(t *testing.T) {
	s := faulty(t, "", "profile token-flags 0x2\nprofile unpadded\nC_GetMechanismInfo before CKR_MECHANISM_INVALID")
	s.contains(s.command(fine, "check"),
		"it says that it is write-protected, but it opened a session for writing",
		"its texts end with a NUL instead of blanks",
		"the token says that it cannot; a trial key shows whether it can",
		"ECDSA with SHA-256 signed and verified",
		"the token has all that SPIRE needs")
}

func TestCheckSaysThatTheRoleMayNotDestroy(t *testing.T) {
	s := faulty(t, "", "C_DestroyObject before CKR_ACTION_PROHIBITED")
	s.contains(s.command(wrong, "check"), "MISSING", "cannot be destroyed", "destroy_superseded = false")
	s = faulty(t, "destroy_superseded = false", "C_DestroyObject before CKR_ACTION_PROHIBITED")
	s.contains(s.command(fine, "check"), "not made: with destroy_superseded = false")
	if left := s.token.Labels(t); len(left) != 0 {
		t.Fatalf("left on the token: %v", left)
	}
}

func TestCheckSaysThatLabelsAreCut(t *testing.T) {
	s := faulty(t, "", "profile label-length 20")
	s.contains(s.command(wrong, "check"), "MISSING", "cannot be made", "label_max")
}

// ---- keys ----

type key struct {
	TrustDomain     *string `json:"trust_domain"`
	TrustDomainHash string  `json:"trust_domain_hash"`
	Server          *string `json:"server"`
	ServerHash      string  `json:"server_hash"`
	ThisServer      bool    `json:"this_server"`
	KeyID           string  `json:"key_id"`
	Type            *string `json:"type"`
	State           string  `json:"state"`
	Label           string  `json:"label"`
	CKAID           string  `json:"cka_id"`
	SHA256          *string `json:"sha256"`
	AuthorityID     *string `json:"local_authority_id"`
	Age             int     `json:"age_seconds"`
}

type listing struct {
	Token struct {
		Label string `json:"label"`
	} `json:"token"`
	Keys     []key `json:"keys"`
	Foreign  int   `json:"foreign_objects"`
	Nameless int   `json:"nameless_objects"`
}

func (s *scene) keys(args ...string) listing {
	s.Helper()
	var found listing
	text, _ := s.run(fine, append([]string{"keys", "--config", s.data, "--trust-domain", "example.org", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		s.Fatalf("%v\n%s", err, text)
	}
	return found
}

func TestKeysShowsWhatAServerHasMade(t *testing.T) {
	s := newScene(t, "")
	made := s.generate("example.org", "JWT-Signer-A", "x509-CA-A")
	s.token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "somebody else's", "--id", "01")
	s.token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1") // as a write that was cut off leaves it
	found := s.keys()
	if len(found.Keys) != 2 || found.Foreign != 2 || found.Nameless != 2 || found.Token.Label != "spire" {
		t.Fatalf("%+v", found)
	}
	table := s.command(fine, "keys")
	for _, k := range found.Keys {
		if made[k.KeyID] == "" || k.SHA256 == nil || *k.SHA256 != made[k.KeyID] || !k.ThisServer || k.State != "current" ||
			*k.Type != "ec-p256" || *k.TrustDomain != "example.org" || len(*k.AuthorityID) != 40 || k.Age < 0 {
			t.Fatalf("%+v", k)
		}
		s.contains(table, k.KeyID, "label="+k.Label, "cka_id="+k.CKAID, "sha256="+*k.SHA256,
			"local_authority_id="+*k.AuthorityID, "this server")
	}
	s.contains(table, fmt.Sprintf("2 keys of SPIRE on token %q", "spire"), "2 foreign key objects")
}

func TestKeysShowsOthersByTheirHashesOrTheirGivenNames(t *testing.T) {
	s := newScene(t, "")
	s.put("example.org", "server-b", 1000, "A")
	s.put("example.com", "server-c", 1000, "A")
	found := s.keys("--server-id", "server-b")
	named := 0
	for _, k := range found.Keys {
		if k.Server != nil {
			named++
		}
		if k.ThisServer || (k.Server != nil && (*k.Server != "server-b" || *k.TrustDomain != "example.org")) ||
			(k.Server == nil && (k.TrustDomain != nil || len(k.TrustDomainHash) != 8)) {
			t.Fatalf("%+v", k)
		}
	}
	if len(found.Keys) != 2 || named != 1 {
		t.Fatalf("%+v", found)
	}
}

func TestKeysTellsCurrentOlderAndHalfApart(t *testing.T) {
	s := newScene(t, "")
	s.write(filepath.Join(s.token.Dir, "hsm-id"), "server-a")
	s.put("example.org", "server-a", 1000, "A")
	s.put("example.org", "server-a", 2000, "A")
	s.halve(s.put("example.org", "server-a", 3000, "A"))
	states := map[string]int{}
	for _, k := range s.keys().Keys {
		states[k.State]++
	}
	if states["current"] != 1 || states["older"] != 1 || states["half"] != 1 || len(states) != 3 {
		t.Fatalf("%v", states)
	}
}
