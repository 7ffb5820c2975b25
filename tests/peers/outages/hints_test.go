package outages

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
)

// habit of a token: what faulty.so plays, and what an operator configures for it.
type habit struct{ script, options string }

// Habits that a token may have all at once, and those that exclude one of these.
var odd = []habit{
	{"profile token-flags-off 0xffffffff\nprofile token-flags 0x2\nprofile unpadded\nprofile not-present\n" +
		"profile plain-start\nprofile blank-mechanisms\nprofile stateless\nprofile exact\nprofile one-attribute\n" +
		"profile narrow\nprofile rawpoint\nprofile one-object\nprofile from-zero\nprofile rude\nprofile moving\n" +
		"C_GetMechanismList before CKR_FUNCTION_NOT_SUPPORTED\nC_GenerateRandom before CKR_FUNCTION_NOT_SUPPORTED\n" +
		"C_GetInfo before CKR_FUNCTION_NOT_SUPPORTED\nC_GetSlotInfo before CKR_FUNCTION_NOT_SUPPORTED", ""},
	{"profile token-flags 0x190102\nprofile own-login\nprofile no-lengths\nprofile nopub\nprofile lag 2\n" +
		"profile yubihsm\nprofile leaky\nprofile no-search\nC_GetMechanismInfo before CKR_MECHANISM_INVALID\n" +
		"C_GetSessionInfo before CKR_GENERAL_ERROR\nC_GenerateRandom before CKR_FUNCTION_FAILED\n" +
		"C_Logout before CKR_FUNCTION_NOT_SUPPORTED", "cka_id_length = 2\nlabel_max = 40\n"},
}

// Those of real devices, which hsm/habits.c does not play.
var ofDevices = []habit{
	{"profile cloudhsm", ""}, {"profile yubihsm", "cka_id_length = 2\nlabel_max = 40\n"}, {"profile nopub", ""},
	{"profile lag 3", ""}, {"profile logout", ""}, {"profile dangling 16 3", ""}, {"profile renumber 500", ""},
	{"profile idle 1000", "keep_alive = \"0\"\n"}, {"profile rude", ""}, {"profile moving", ""}, {"profile leaky", ""},
	{"C_Initialize before sleep 700\nC_Login before sleep 700", ""},
}

// single habits: the table of hsm/habits.c itself, so that none is forgotten here.
func single(t testing.TB) []habit {
	t.Helper()
	table, err := os.ReadFile("../../hsm/habits.c")
	scene.Must(t, err)
	all := ofDevices
	for _, row := range regexp.MustCompile(`(?m)^    \{("(?:profile|C_).*"),\s+".*"\},$`).FindAllStringSubmatch(string(table), -1) {
		script, err := strconv.Unquote(row[1])
		scene.Must(t, err)
		all = append(all, habit{script, ""})
	}
	if len(all) < 48 {
		t.Fatalf("only %d habits in the table", len(all))
	}
	return all
}

func TestASpireServerLivesOnATokenThatIsOddInEveryWay(t *testing.T) {
	for i, h := range odd {
		t.Run(strconv.Itoa(i), func(t *testing.T) { liveWith(t, h) })
	}
}

// LONG=1, as it takes minutes. Each by itself is with the plugin alone in peers/faults.
func TestASpireServerLivesOnATokenOfEachHabit(t *testing.T) {
	if !long {
		t.Skip("LONG=1 is not set")
	}
	for _, h := range single(t) {
		t.Run(strings.ReplaceAll(h.script, "\n", ", "), func(t *testing.T) {
			t.Parallel()
			liveWith(t, h)
		})
	}
}

// liveWith a habit: a server's start, a token minted, its worker killed, the server killed and
// started again.
func liveWith(t *testing.T, h habit) {
	b := newFaulty(t, h.options, h.script)
	s := newServer(t, b)
	faults(t, 2)
	mint := func() {
		t.Helper()
		_, err := s.run("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a")
		scene.Must(t, err)
	}
	s.start()
	mint()
	before, err := s.run("bundle", "show", "-format", "spiffe")
	scene.Must(t, err)
	all := family(t, s.Process.Pid)
	worker := all[len(all)-1]
	scene.Must(t, syscall.Kill(worker, syscall.SIGKILL))
	mint()
	s.Kill()
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
	mint()
}
