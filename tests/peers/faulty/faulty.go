// Package faulty puts tests/support/faulty_module.c between a plugin and a SoftHSM token: a module
// that fails by a script.
package faulty

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/softhsm"
)

// Module is faulty.so with a script of its own.
type Module struct {
	path, script string
	rings        uint64
	mark         int64 // where in SCRIPT.fired the present script's record begins
}

// Wrap a token. faulty.so is built beside the plugin's other tests.
func Wrap(t testing.TB, token *softhsm.Token) *Module {
	t.Helper()
	m := &Module{path: filepath.Join(filepath.Dir(host.Binary(t)), "tests", "faulty.so"),
		script: filepath.Join(token.Dir, "script")}
	if _, err := os.Stat(m.path); err != nil {
		t.Fatal(err)
	}
	return m
}

// Env of a process that loads it, beside the token's.
func (m *Module) Env() []string {
	return []string{"FAULTY_MODULE=" + softhsm.Module(), "FAULTY_SCRIPT=" + m.script}
}

// In plugin_data, in SoftHSM's place.
func (m *Module) In(pluginData string) string {
	return strings.Replace(pluginData, softhsm.Module(), m.path, 1)
}

// Play another script; the next call of any process follows it.
func (m *Module) Play(t testing.TB, format string, args ...any) {
	t.Helper()
	if info, err := os.Stat(m.script + ".fired"); err == nil {
		m.mark = info.Size()
	}
	text := fmt.Sprintf(format, args...)
	if err := os.WriteFile(m.script+".new", []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.script+".new", m.script); err != nil {
		t.Fatal(err)
	}
	page, err := os.OpenFile(m.script+".page", os.O_WRONLY, 0)
	if err != nil {
		return // nobody has read a script yet
	}
	defer page.Close()
	m.rings++
	if _, err := page.WriteAt(binary.NativeEndian.AppendUint64(nil, m.rings), 0); err != nil {
		t.Fatal(err)
	}
}

// Firing of a fault.
type Firing struct {
	PID      int
	Function string
}

func (m *Module) firedFrom(t testing.TB, mark int64) (all []Firing) {
	t.Helper()
	text, err := os.ReadFile(m.script + ".fired")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text[min(mark, int64(len(text))):]), "\n") {
		if fields := strings.Fields(line); len(fields) == 4 {
			pid, _ := strconv.Atoi(fields[0])
			all = append(all, Firing{pid, fields[3]})
		}
	}
	return all
}

// Fired of the present script so far.
func (m *Module) Fired(t testing.TB) []Firing {
	t.Helper()
	return m.firedFrom(t, m.mark)
}

// FiredIn a function, of all scripts.
func (m *Module) FiredIn(t testing.TB, function string) (all []Firing) {
	t.Helper()
	for _, firing := range m.firedFrom(t, 0) {
		if firing.Function == function {
			all = append(all, firing)
		}
	}
	return all
}

// Sessions that living processes have open, as the page beside the script counts them.
func (m *Module) Sessions(t testing.TB) (n uint64) {
	t.Helper()
	const (
		holders = 24 // behind bell, script, loaded
		size    = 24 // pid, sessions, died
	)
	page, err := os.ReadFile(m.script + ".page")
	if err != nil || len(page) < holders+64*size {
		t.Fatalf("%s.page: %d bytes, %v", m.script, len(page), err)
	}
	for i := range 64 {
		holder := page[holders+i*size:]
		pid, died := binary.NativeEndian.Uint32(holder), binary.NativeEndian.Uint64(holder[16:])
		if pid != 0 && died == 0 && !host.Gone(int(pid)) {
			n += binary.NativeEndian.Uint64(holder[8:])
		}
	}
	return n
}
