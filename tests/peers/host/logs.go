package host

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Line of the log as the host gets it.
type Line struct {
	Level   hclog.Level
	Logger  string // ends with the binary's name where the plugin itself spoke
	Message string
	Fields  map[string]string
}

// Logs collects lines.
type Logs struct {
	logger hclog.InterceptLogger
	mutex  sync.Mutex
	lines  []Line
	added  chan struct{} // closed, and made anew, with every line
}

func newLogs() *Logs {
	l := &Logs{added: make(chan struct{})}
	l.logger = hclog.NewInterceptLogger(&hclog.LoggerOptions{
		Name: "host", Output: io.Discard, Level: hclog.Trace,
	})
	l.logger.RegisterSink(l)
	return l
}

// Accept takes a line from hclog.
func (l *Logs) Accept(name string, level hclog.Level, message string, args ...any) {
	line := Line{Level: level, Logger: name, Message: message, Fields: map[string]string{}}
	for i := 0; i+1 < len(args); i += 2 {
		line.Fields[fmt.Sprint(args[i])] = fmt.Sprint(args[i+1])
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.lines = append(l.lines, line)
	close(l.added)
	l.added = make(chan struct{})
}

// Lines so far.
func (l *Logs) Lines() []Line {
	lines, _ := l.snapshot()
	return lines
}

func (l *Logs) snapshot() ([]Line, <-chan struct{}) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return append([]Line(nil), l.lines...), l.added
}

// Find the first line whose message or fields contain `text`.
func (l *Logs) Find(text string) (Line, bool) {
	for _, line := range l.Lines() {
		if strings.Contains(line.String(), text) {
			return line, true
		}
	}
	return Line{}, false
}

// Count the lines with this message.
func (l *Logs) Count(message string) (n int) {
	for _, line := range l.Lines() {
		if line.Message == message {
			n++
		}
	}
	return n
}

// Wait for a line whose message or fields contain `text`.
func (l *Logs) Wait(t testing.TB, text string) Line {
	t.Helper()
	patience := time.After(time.Minute)
	for {
		_, added := l.snapshot()
		if line, ok := l.Find(text); ok {
			return line
		}
		select {
		case <-added:
		case <-patience:
			t.Fatalf("no line with %q in the log:\n%s", text, l)
		}
	}
}

func (line Line) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "[%s] %s: %s", line.Level, line.Logger, line.Message)
	for key, value := range line.Fields {
		fmt.Fprintf(&text, " %s=%q", key, value)
	}
	return text.String()
}

func (l *Logs) String() string {
	var text strings.Builder
	for _, line := range l.Lines() {
		fmt.Fprintln(&text, line)
	}
	return text.String()
}
