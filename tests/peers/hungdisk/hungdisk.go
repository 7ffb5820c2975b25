// Package hungdisk is a file system with one file, which can stop answering as a network disk does
// whose server is gone: who asks it for anything waits, and not even SIGKILL ends that wait. It
// speaks FUSE, as <linux/fuse.h> has it.
package hungdisk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	opLookup  = 1
	opForget  = 2
	opGetattr = 3
	opOpen    = 14
	opRead    = 15
	opRelease = 18
	opFlush   = 25
	opInit    = 26

	rootNode, fileNode = 1, 2

	major, minor = 7, 31
	directIO     = 1 // of an open file: nothing is read from a cache
	requestMax   = 1 << 17
)

type header struct {
	Length, Opcode   uint32
	Unique, Node     uint64
	UID, GID, PID, _ uint32
}

type answer struct {
	Length uint32
	Error  int32
	Unique uint64
}

type attributes struct {
	Inode, Size, Blocks, Atime, Mtime, Ctime                      uint64
	AtimeNS, MtimeNS, CtimeNS, Mode, Links, UID, GID, Rdev, Block uint32
	_                                                             uint32
}

// What is told may be kept for no time: a look at the file always comes here.
type entry struct {
	Node, Generation, EntryValid, AttrValid uint64
	EntryValidNS, AttrValidNS               uint32
	Attributes                              attributes
}

type attributesOut struct {
	Valid      uint64
	ValidNS, _ uint32
	Attributes attributes
}

type opened struct {
	Handle   uint64
	Flags, _ uint32
}

type initOut struct {
	Major, Minor, Readahead, Flags uint32
	Background, Congestion         uint16
	MaxWrite, TimeGranularity      uint32
	_                              [9]uint32
}

// Disk is mounted until the test ends.
type Disk struct {
	File string // the path of its file

	fd      int
	mutex   sync.Mutex
	text    []byte
	written time.Time
	hangs   bool
	owed    []func()
	asked   chan struct{} // closed by the first request that is not answered
	server  sync.WaitGroup
	once    sync.Once
}

// Mount a disk with a file of that name and content, for its owner alone. Where that cannot be done
// the test is skipped.
func Mount(t testing.TB, directory, name, text string) *Disk {
	t.Helper()
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no FUSE here: /dev/fuse: %v", err)
	}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, os.Geteuid(), os.Getegid())
	if err := syscall.Mount("hungdisk", directory, "fuse", syscall.MS_NODEV|syscall.MS_NOSUID, options); err != nil {
		_ = syscall.Close(fd)
		t.Skipf("no FUSE here: mount: %v", err)
	}
	d := &Disk{File: filepath.Join(directory, name), fd: fd, asked: make(chan struct{})}
	d.Write(text)
	d.server.Go(d.serve)
	t.Cleanup(d.End)
	return d
}

// End unmounts it: who waits for an answer is told that there will be none.
func (d *Disk) End() {
	d.once.Do(func() {
		_ = syscall.Unmount(filepath.Dir(d.File), syscall.MNT_FORCE|syscall.MNT_DETACH)
		d.server.Wait()
		_ = syscall.Close(d.fd)
	})
}

// Write another content.
func (d *Disk) Write(text string) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.text, d.written = []byte(text), time.Now()
}

// Hang: nothing is answered from now on.
func (d *Disk) Hang() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.hangs = true
}

// Answer again, and what is owed.
func (d *Disk) Answer() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.hangs = false
	for _, reply := range d.owed {
		reply()
	}
	d.owed, d.asked = nil, make(chan struct{})
}

// Asked is closed once somebody waits for an answer in vain.
func (d *Disk) Asked() <-chan struct{} {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.asked
}

func (d *Disk) serve() {
	request := make([]byte, requestMax)
	for {
		n, err := syscall.Read(d.fd, request)
		if err == syscall.EINTR || err == syscall.ENOENT { // who asked has gone
			continue
		}
		if err != nil {
			return
		}
		var h header
		if n < binary.Size(h) {
			return
		}
		_ = binary.Read(bytes.NewReader(request), binary.NativeEndian, &h)
		d.take(h, bytes.Clone(request[binary.Size(h):n]))
	}
}

func (d *Disk) take(h header, body []byte) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	switch {
	case h.Opcode == opForget: // has no answer
	case !d.hangs:
		d.answer(h, body)
	default:
		if len(d.owed) == 0 {
			close(d.asked)
		}
		d.owed = append(d.owed, func() { d.answer(h, body) })
	}
}

func (d *Disk) answer(h header, body []byte) {
	var out bytes.Buffer
	fault := d.fill(h, body, &out)
	head := answer{Length: uint32(binary.Size(answer{}) + out.Len()), Error: -int32(fault), Unique: h.Unique}
	var packet bytes.Buffer
	_ = binary.Write(&packet, binary.NativeEndian, head)
	packet.Write(out.Bytes())
	_, _ = syscall.Write(d.fd, packet.Bytes())
}

// fill in what is answered; an errno where that is an error.
func (d *Disk) fill(h header, body []byte, out *bytes.Buffer) syscall.Errno {
	put := func(v any) { _ = binary.Write(out, binary.NativeEndian, v) }
	switch h.Opcode {
	case opInit:
		put(initOut{Major: major, Minor: minor, MaxWrite: 4096, TimeGranularity: 1})
	case opLookup:
		if string(bytes.TrimRight(body, "\x00")) != filepath.Base(d.File) {
			return syscall.ENOENT
		}
		put(entry{Node: fileNode, Attributes: d.attributes(fileNode)})
	case opGetattr:
		put(attributesOut{Attributes: d.attributes(h.Node)})
	case opOpen:
		put(opened{Flags: directIO})
	case opRead:
		offset := min(binary.NativeEndian.Uint64(body[8:]), uint64(len(d.text)))
		out.Write(d.text[offset:])
	case opRelease, opFlush:
	default:
		return syscall.ENOSYS
	}
	return 0
}

func (d *Disk) attributes(node uint64) attributes {
	a := attributes{
		Inode: node, Mode: syscall.S_IFDIR | 0o700, Links: 2, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		Mtime: uint64(d.written.Unix()), Ctime: uint64(d.written.Unix()),
		MtimeNS: uint32(d.written.Nanosecond()), CtimeNS: uint32(d.written.Nanosecond()),
	}
	if node == fileNode {
		a.Mode, a.Links, a.Size = syscall.S_IFREG|0o400, 1, uint64(len(d.text))
	}
	return a
}
