package wire

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	goplugin "github.com/hashicorp/go-plugin"

	"spire-hsm/peers/host"
)

// run the binary by hand, without a cookie.
func run(t *testing.T, arguments ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errors bytes.Buffer
	cmd := exec.Command(host.Binary(t), arguments...)
	cmd.Stdout, cmd.Stderr = &out, &errors
	_ = cmd.Run()
	return out.String(), errors.String(), cmd.ProcessState.ExitCode()
}

func TestVersionIsToldWithoutCookie(t *testing.T) {
	out, errors, code := run(t, "--version")
	if code != 0 || !strings.HasPrefix(out, "spire-hsm ") || errors != "" {
		t.Errorf("%d %q %q", code, out, errors)
	}
}

func TestHelpListsTheRolesAndAnExample(t *testing.T) {
	out, errors, code := run(t, "--help")
	if code != 0 || errors != "" {
		t.Errorf("%d %q", code, errors)
	}
	for _, word := range []string{"KeyManager", "BundlePublisher", "Notifier", "plugin_data", "--version"} {
		if !strings.Contains(out, word) {
			t.Errorf("--help does not mention %s", word)
		}
	}
}

func TestRunByHandItExplainsItself(t *testing.T) {
	out, errors, code := run(t)
	if code != 1 || out != "" || !strings.Contains(errors, "spire-server") || !strings.Contains(errors, "plugin_cmd") {
		t.Errorf("%d %q %q", code, out, errors)
	}
}

func TestTheCookieMustHaveTheRightValue(t *testing.T) {
	cmd := exec.Command(host.Binary(t))
	cmd.Env = append(os.Environ(), "KeyManager=Notifier")
	if out, err := cmd.Output(); err == nil || len(out) > 0 {
		t.Errorf("it serves: %q %v", out, err)
	}
}

func TestTheLineIsGoPluginsAndNothingFollowsIt(t *testing.T) {
	folder := t.TempDir()
	b := host.StartBare(t, "KeyManager", "TMPDIR="+folder, "PLUGIN_PROTOCOL_VERSIONS=1")
	if want := regexp.MustCompile(`^1\|1\|unix\|` + folder + `/[^/|]+\|grpc\|$`); !want.MatchString(b.Line) {
		t.Errorf("%q", b.Line)
	}
	if info, err := os.Stat(b.Socket); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the socket is not its owner's alone: %v %v", info, err)
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", b.Cmd.Process.Pid)); err != nil || link != "/dev/null" {
		t.Errorf("stdout goes to %q %v", link, err)
	}
	shutdown(t, b)
	if left, _ := os.ReadDir(folder); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestTwoSocketsNeverHaveOneName(t *testing.T) {
	a, b := host.StartBare(t, "Notifier"), host.StartBare(t, "Notifier")
	if a.Socket == b.Socket || a.Socket == "" {
		t.Errorf("%q %q", a.Socket, b.Socket)
	}
	shutdown(t, a)
	shutdown(t, b)
}

func TestTheSocketFolderIsTheHostsWish(t *testing.T) {
	for _, name := range []string{"plain", "with space", "100%41", "q?ue#ry", "ümlaut"} {
		folder := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		b := host.StartBare(t, "Notifier", "PLUGIN_UNIX_SOCKET_DIR="+folder, "TMPDIR=/nonexistent")
		if filepath.Dir(b.Socket) != folder {
			t.Fatalf("%s: %q\n%s", name, b.Line, b.Stderr())
		}
		if _, err := os.Stat(b.Socket); err != nil {
			t.Error(err)
		}
		shutdown(t, b)
	}
}

func TestASocketFolderThatCannotBeIsNamed(t *testing.T) {
	for _, folder := range []string{"/nonexistent", "/" + strings.Repeat("x", 120)} {
		b := host.StartBare(t, "Notifier", "PLUGIN_UNIX_SOCKET_DIR="+folder)
		if code := b.Wait(); code != 1 || b.Line != "" || !strings.Contains(b.Stderr(), folder[:12]) {
			t.Errorf("%d %q %q", code, b.Line, b.Stderr())
		}
	}
}

func TestTheSocketIsSharedWithAGroupOnRequest(t *testing.T) {
	group := os.Getgid()
	b := host.StartBare(t, "Notifier", fmt.Sprintf("PLUGIN_UNIX_SOCKET_GROUP=%d", group))
	info, err := os.Stat(b.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o660 || int(info.Sys().(*syscall.Stat_t).Gid) != group {
		t.Errorf("%v %v", info.Mode(), info.Sys())
	}
	shutdown(t, b)

	b = host.StartBare(t, "Notifier", "PLUGIN_UNIX_SOCKET_GROUP=no-such-group")
	if code := b.Wait(); code != 1 || b.Line != "" || !strings.Contains(b.Stderr(), "no-such-group") {
		t.Errorf("%d %q %q", code, b.Line, b.Stderr())
	}
}

func TestMutualTLSIsRefusedInOneLine(t *testing.T) {
	b := host.StartBare(t, "KeyManager", "PLUGIN_CLIENT_CERT=-----BEGIN CERTIFICATE-----")
	if code := b.Wait(); code != 1 || b.Line != "" {
		t.Errorf("%d %q", code, b.Line)
	}
	if text := b.Stderr(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "PLUGIN_CLIENT_CERT") {
		t.Errorf("%q", text)
	}
	_, err := host.Load(t.Context(), host.Options{Path: host.Binary(t), Type: "KeyManager", AutoMTLS: true})
	if err == nil || !strings.Contains(err.Error(), "PLUGIN_CLIENT_CERT") {
		t.Errorf("the host is told: %v", err)
	}
}

func TestMultiplexingIsAnsweredHonestly(t *testing.T) {
	b := host.StartBare(t, "KeyManager", "PLUGIN_MULTIPLEX_GRPC=true")
	if !strings.HasSuffix(b.Line, "|grpc||false") {
		t.Errorf("%q", b.Line)
	}
	shutdown(t, b)
	t.Setenv("PLUGIN_UNIX_SOCKET_DIR", t.TempDir()) // go-plugin kills it, and tells nobody where it listened
	_, err := host.Load(t.Context(), host.Options{Path: host.Binary(t), Type: "KeyManager", Multiplex: true})
	if !errors.Is(err, goplugin.ErrGRPCBrokerMuxNotSupported) {
		t.Errorf("the host understands: %v", err)
	}
}

func TestProtocolVersionsMustContainOurs(t *testing.T) {
	for versions, fine := range map[string]bool{"1": true, "2,1": true, "1,3": true, "2": false, "11": false, "x": false} {
		b := host.StartBare(t, "KeyManager", "PLUGIN_PROTOCOL_VERSIONS="+versions)
		if fine {
			shutdown(t, b)
		} else if code := b.Wait(); code != 1 || b.Line != "" || !strings.Contains(b.Stderr(), "PLUGIN_PROTOCOL_VERSIONS") {
			t.Errorf("%s: %d %q %q", versions, code, b.Line, b.Stderr())
		}
	}
}
