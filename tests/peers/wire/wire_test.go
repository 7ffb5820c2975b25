// Package wire drives the real binary over its socket with a real go-plugin host.
package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"spire-hsm/peers/host"
)

const (
	serverKeyManager = "spire.plugin.server.keymanager.v1.KeyManager"
	agentKeyManager  = "spire.plugin.agent.keymanager.v1.KeyManager"
	publisher        = "spire.plugin.server.bundlepublisher.v1.BundlePublisher"
	notifier         = "spire.plugin.server.notifier.v1.Notifier"
	config           = "spire.service.common.config.v1.Config"

	configureMethod = "/spire.service.common.config.v1.Config/Configure"
	initMethod      = "/spire.service.private.init.v1.Init/Init"
	shutdownMethod  = "/plugin.GRPCController/Shutdown"
	stdioMethod     = "/plugin.GRPCStdio/StreamStdio"
	brokerMethod    = "/plugin.GRPCBroker/StartStream"
)

func expect(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%v, expected %v", err, code)
	}
	for _, word := range words {
		if !strings.Contains(status.Convert(err).Message(), word) {
			t.Errorf("%q does not mention %q", status.Convert(err).Message(), word)
		}
	}
}

func check(conn *grpc.ClientConn, service string) (*healthv1.HealthCheckResponse, error) {
	return healthv1.NewHealthClient(conn).Check(context.Background(),
		&healthv1.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
}

func expectHealthy(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	if _, err := check(conn, "plugin"); err != nil {
		t.Errorf("not healthy any more: %v", err)
	}
}

// run the binary by hand, without a cookie.
func run(t *testing.T, arguments ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errors bytes.Buffer
	cmd := exec.Command(host.Binary(t), arguments...)
	cmd.Stdout, cmd.Stderr = &out, &errors
	_ = cmd.Run()
	return out.String(), errors.String(), cmd.ProcessState.ExitCode()
}

func shutdown(t *testing.T, b *host.Bare) {
	t.Helper()
	if _, err := host.Invoke(t.Context(), b.Dial(t), shutdownMethod, nil); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	expectEnd(t, b)
}

func expectEnd(t *testing.T, b *host.Bare) {
	t.Helper()
	if code := b.Wait(); code != 0 {
		t.Errorf("exit status %d, stderr:\n%s", code, b.Stderr())
	}
	expectNoSocket(t, b.Socket)
}

func expectNoSocket(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// stream opens a stream and keeps it open.
func stream(t *testing.T, conn *grpc.ClientConn, method string) grpc.ClientStream {
	t.Helper()
	s, err := conn.NewStream(context.Background(),
		&grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return s
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

func TestOnlyTheServicesOfTheRoleAreAnnounced(t *testing.T) {
	for _, row := range []struct {
		role    string
		agent   bool
		service string
	}{
		{"KeyManager", false, serverKeyManager},
		{"KeyManager", true, agentKeyManager},
		{"BundlePublisher", false, publisher},
		{"Notifier", false, notifier},
	} {
		p := host.Start(t, host.Options{Type: row.role, Agent: row.agent})
		slices.Sort(p.Services)
		want := []string{row.service, config}
		slices.Sort(want)
		if !slices.Equal(p.Services, want) {
			t.Errorf("%s: %v", row.role, p.Services)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		for _, line := range p.Logs.Lines() {
			if line.Level >= hclog.Warn {
				t.Errorf("%s: %v", row.role, line)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	if err := p.Ping(); err != nil {
		t.Error(err)
	}
	for _, service := range []string{"plugin", ""} {
		response, err := check(p.Conn, service)
		if err != nil || response.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v %v", service, response, err)
		}
	}
	_, err := check(p.Conn, serverKeyManager)
	expect(t, err, codes.NotFound, "unknown service")
}

func TestUnknownMethodsAreUnimplemented(t *testing.T) {
	p := host.Start(t, host.Options{Type: "Notifier"})
	for _, method := range []string{"/" + serverKeyManager + "/SignData", "/grpc.health.v1.Health/Watch", "/x/y", "/%00%ff/é"} {
		for range 3 {
			_, err := p.Invoke(t.Context(), method, []byte("whatever"))
			expect(t, err, codes.Unimplemented)
		}
	}
	expectHealthy(t, p.Conn)
}

func TestShutdownEndsItWhateverIsOpen(t *testing.T) {
	b := host.StartBare(t, "KeyManager")
	conn := b.Dial(t)
	stream(t, conn, brokerMethod)
	stream(t, conn, stdioMethod)
	stream(t, b.Dial(t), stdioMethod)
	host.Raw(t, b.Socket) // says nothing
	if _, err := host.Raw(t, b.Socket).Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	shutdown(t, b)
	if took := time.Since(started); took > 2*time.Second { // then go-plugin kills
		t.Errorf("it took %v", took)
	}
}

func TestShutdownUnderLoadEndsWell(t *testing.T) {
	for range 5 {
		b := host.StartBare(t, "BundlePublisher")
		conn := b.Dial(t)
		expectHealthy(t, conn)
		var callers sync.WaitGroup
		answers := make(chan error, 1<<16)
		for range 16 {
			callers.Go(func() {
				for {
					_, err := host.Invoke(context.Background(), conn, "/grpc.health.v1.Health/Check", nil)
					answers <- err
					if err != nil {
						return
					}
				}
			})
		}
		for range 200 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		shutdown(t, b)
		callers.Wait()
		close(answers)
		for err := range answers {
			if err != nil && status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
				t.Error(err)
			}
		}
	}
}

func TestHangUpInterruptAndUserSignalsAreIgnored(t *testing.T) {
	p := host.Start(t, host.Options{Type: "KeyManager"})
	for _, signal := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE} {
		if err := p.Signal(signal); err != nil {
			t.Error(err)
		}
	}
	expectHealthy(t, p.Conn)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if line, ok := p.Logs.Find("asked to end"); ok {
		t.Errorf("it took a signal for SIGTERM: %v", line)
	}
}

func TestAfterSigtermItServesUntilShutdown(t *testing.T) {
	p := host.Start(t, host.Options{Type: "KeyManager"})
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.Logs.Wait(t, "asked to end")
	expectHealthy(t, p.Conn)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := p.Logs.Find("SIGTERM"); ok {
		t.Error("it stopped before Shutdown")
	}
}

func TestAfterSigtermItEndsWithoutShutdownToo(t *testing.T) {
	b := host.StartBare(t, "KeyManager")
	stream(t, b.Dial(t), stdioMethod)
	if err := b.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, b)
}

func TestItEndsWhenTheHostHasDied(t *testing.T) {
	parent := exec.Command("/bin/sh", "-c", `"$SPIRE_HSM" & echo pid $!; wait`)
	parent.Env = append(os.Environ(), "SPIRE_HSM="+host.Binary(t), "KeyManager=KeyManager")
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	errRead, errWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	parent.Stdout, parent.Stderr = outWrite, errWrite
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	outWrite.Close()
	errWrite.Close()
	out := make([]byte, 0, 1024)
	for bytes.Count(out, []byte("\n")) < 2 {
		chunk := make([]byte, 1024)
		n, err := outRead.Read(chunk)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, chunk[:n]...)
	}
	socket := regexp.MustCompile(`unix\|([^|]+)\|`).FindSubmatch(out)
	if socket == nil {
		t.Fatalf("%q", out)
	}
	stream(t, host.Dial(t, string(socket[1])), stdioMethod)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	var rest bytes.Buffer
	_, _ = rest.ReadFrom(errRead) // to its end, which is the plugin's
	if !strings.Contains(rest.String(), "the host has ended") {
		t.Errorf("%q", rest.String())
	}
	expectNoSocket(t, string(socket[1]))
}

// headersWith is a connection's beginning with one bad header, which C-core would quote.
func headersWith(name, value string) string {
	block := "\x00" + string(rune(len(name))) + name + string(rune(len(value))) + value
	return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" +
		"\x00\x00" + string(rune(len(block))) + "\x01\x04\x00\x00\x00\x01" + block
}

func TestBytesThatAreNotHTTP2DoNoHarm(t *testing.T) {
	b := host.StartBare(t, "KeyManager")
	conn := b.Dial(t)
	for _, garbage := range []string{
		"PRI * HT", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		strings.Repeat("\xff", 70000), strings.Repeat("\x00", 70000),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("garbage", 1000),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x01\x05\x00\x00\x00\x01",
		headersWith("te", "bogus\xff"), headersWith(":method", "BOGUS\xff"),
	} {
		raw := host.Raw(t, b.Socket)
		_, _ = raw.Write([]byte(garbage))
		_ = raw.Close()
		raw = host.Raw(t, b.Socket)
		_, _ = raw.Write([]byte(garbage))
		expectHealthy(t, conn)
	}
	shutdown(t, b)
	if !strings.Contains(b.Stderr(), "bogus?") {
		t.Errorf("C-core's complaint is lost:\n%s", b.Stderr())
	}
	for line := range strings.Lines(b.Stderr()) {
		if !strings.HasPrefix(line, "{") || strings.ContainsAny(line, "\xff\x00") {
			t.Errorf("raw output on stderr: %q", line)
		}
	}
}

func TestAHundredStalledConnectionsDoNoHarm(t *testing.T) {
	b := host.StartBare(t, "KeyManager")
	expectHealthy(t, b.Dial(t))
	before := descriptors(t, b)
	var all []interface{ Close() error }
	for i := range 100 {
		raw := host.Raw(t, b.Socket)
		if i%2 == 1 {
			_, _ = raw.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
		}
		all = append(all, raw)
	}
	conn := b.Dial(t)
	expectHealthy(t, conn)
	for _, raw := range all {
		_ = raw.Close()
	}
	for descriptors(t, b) > before+2 { // each closing takes a moment, ended by the test's time limit
		expectHealthy(t, conn)
	}
	shutdown(t, b)
}

func descriptors(t *testing.T, b *host.Bare) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestManyStreamsAreBounded(t *testing.T) {
	b := host.StartBare(t, "KeyManager")
	conn := b.Dial(t)
	for range 1000 {
		stream(t, conn, stdioMethod)
	}
	expectHealthy(t, conn)
	shutdown(t, b)
}

func TestOversizedMessagesAreRefused(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	_, err := p.Invoke(t.Context(), configureMethod, make([]byte, 4<<20+1))
	expect(t, err, codes.ResourceExhausted)
	_, err = p.Invoke(t.Context(), configureMethod, make([]byte, 64<<20))
	expect(t, err, codes.ResourceExhausted)
	expectHealthy(t, p.Conn)
}

func TestCompressedMessagesAreRefused(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	_, err := p.Invoke(t.Context(), configureMethod, make([]byte, 64<<20), grpc.UseCompressor(gzip.Name))
	expect(t, err, codes.Unimplemented)
	expectHealthy(t, p.Conn)
}

func field(number protowire.Number, content string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), content)
}

func TestRequestsThatAreNoProtobufAreRefused(t *testing.T) {
	p := host.Start(t, host.Options{Type: "KeyManager"})
	for name, request := range map[string][]byte{
		"one byte":            {0xff},
		"a length too long":   {0x0a, 0x7f, 'a'},
		"field number 0":      {0x02, 0x00},
		"a group":             {0x0b, 0x0c},
		"an endless number":   bytes.Repeat([]byte{0xff}, 20),
		"a string with NUL":   field(1, "a\x00b"),
		"half a character":    field(1, "a\xc3"),
		"an overlong NUL":     field(1, "\xc0\x80"),
		"a surrogate":         field(1, "\xed\xa0\x80"),
		"beyond Unicode":      field(1, "\xf4\x90\x80\x80"),
		"a million tiny ones": bytes.Repeat(field(1, ""), 1<<20),
		"a million unknown":   bytes.Repeat(field(99, ""), 1<<20),
	} {
		_, err := p.Invoke(t.Context(), initMethod, request)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		expect(t, err, codes.InvalidArgument, "malformed request")
	}
	for name, request := range map[string][]byte{
		"NUL one level down": field(1, string(field(1, "example\x00.org"))),
		"NUL in plugin_data": field(2, "path = \x00"),
		"rubbish":            field(1, "\x0a\x7f"),
	} {
		_, err := p.Invoke(t.Context(), configureMethod, request)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	expectHealthy(t, p.Conn)
}

func TestUnknownFieldsAreNoMistake(t *testing.T) {
	p := host.Start(t, host.Options{Type: "KeyManager"})
	if _, err := p.Invoke(t.Context(), initMethod, field(99, "new in SPIRE 2")); err != nil {
		t.Error(err)
	}
}

func TestConfigureNeedsTheTrustDomain(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	_, err := p.Invoke(t.Context(), configureMethod, nil)
	expect(t, err, codes.InvalidArgument, "core configuration")
	expect(t, p.Configure("", ""), codes.InvalidArgument, "trust domain")
	_, err = p.Validate("", "")
	expect(t, err, codes.InvalidArgument, "trust domain")
}

func TestLogLinesArriveWithLevelAndFields(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	path := filepath.Join(t.TempDir(), "bundle.json")
	if err := p.Configure("example.org", fmt.Sprintf("path = %q", path)); err != nil {
		t.Fatal(err)
	}
	line := p.Logs.Wait(t, "configured")
	if line.Level != hclog.Info || line.Message != "configured" || line.Fields["trust_domain"] != "example.org" {
		t.Errorf("%v", line)
	}
	expect(t, p.Configure("example.org", fmt.Sprintf("path = %q\nbad = 1\n", path)), codes.InvalidArgument, "bad")
	if line := p.Logs.Wait(t, `"bad`); line.Level != hclog.Error {
		t.Errorf("%v", line)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for _, line := range p.Logs.Lines() {
		if timestamp, ok := line.Fields["timestamp"]; ok && strings.HasPrefix(timestamp, "0001") {
			t.Errorf("no date: %v", line)
		}
	}
}

func TestValidateTellsWithoutFailing(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	path := filepath.Join(t.TempDir(), "bundle.json")
	response, err := p.Validate("example.org", fmt.Sprintf("path = %q", path))
	if err != nil || !response.Valid {
		t.Errorf("%v %v", response, err)
	}
	response, err = p.Validate("example.org", fmt.Sprintf("path = %q\nbad = 1\n", path))
	if err != nil || response.Valid || len(response.Notes) != 1 || !strings.Contains(response.Notes[0], "bad") {
		t.Errorf("%v %v", response, err)
	}
}

func TestCancelledAndExpiredCallsDoNoHarm(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	var callers sync.WaitGroup
	for i := range 200 {
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*10*time.Microsecond)
			defer cancel()
			_, _ = p.Invoke(ctx, "/grpc.health.v1.Health/Check", nil)
			_, _ = p.Invoke(ctx, configureMethod, nil)
		})
	}
	callers.Wait()
	expectHealthy(t, p.Conn)
}

func TestItIsStartedByHostsThatAreLaterReplaced(t *testing.T) {
	first := host.Start(t, host.Options{Type: "Notifier"})
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if state := first.State(); state == nil || !state.Success() {
		t.Errorf("%v", state)
	}
	expectHealthy(t, host.Start(t, host.Options{Type: "Notifier"}).Conn)
}
