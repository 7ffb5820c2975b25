package wire

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"spire-hsm/peers/host"
)

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
