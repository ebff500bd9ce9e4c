// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"container/list"
	"errors"
	"os"
	"sync"
	"syscall"
)

// maxOpen is how many objects a Bucket keeps open for ReadAt.
const maxOpen = 128

// openFiles keeps the objects open that were read last. The zero value is
// ready.
type openFiles struct {
	mu    sync.Mutex
	order list.List                // guarded by mu: of openFile, the one used last in front
	byKey map[string]*list.Element // guarded by mu
}

type openFile struct {
	key  string
	file *os.File
}

// readAt reads from the object that open opens.
func (o *openFiles) readAt(key string, open func(string) (*os.File, error), p []byte, off int64) (int, error) {
	for {
		f := o.get(key)
		if f == nil {
			var err error
			if f, err = open(key); err != nil {
				return 0, err
			}
			o.add(key, f)
		}
		if replaced(f) {
			o.drop(key, f)
			continue
		}
		n, err := f.ReadAt(p, off)
		if errors.Is(err, os.ErrClosed) { // others were used more
			continue
		}
		return n, err
	}
}

// replaced tells whether an open file is the object no more. Others may close
// it meanwhile, so its descriptor must not be used past the File.
func replaced(f *os.File) bool {
	st, err := f.Stat()
	return err != nil || st.Sys().(*syscall.Stat_t).Nlink == 0
}

func (o *openFiles) get(key string) *os.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.byKey[key]
	if e == nil {
		return nil
	}
	o.order.MoveToFront(e)
	return e.Value.(openFile).file
}

// add keeps a file, and closes one that was used least or is of the same key.
func (o *openFiles) add(key string, f *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byKey == nil {
		o.byKey = map[string]*list.Element{}
	}
	for _, e := range o.byKey { // what others have deleted takes space until it is closed
		if replaced(e.Value.(openFile).file) {
			o.remove(e)
		}
	}
	if e := o.byKey[key]; e != nil {
		o.remove(e)
	} else if len(o.byKey) >= maxOpen {
		o.remove(o.order.Back())
	}
	o.byKey[key] = o.order.PushFront(openFile{key, f})
}

// forget closes the object of a key that is gone.
func (o *openFiles) forget(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.byKey[key]; e != nil {
		o.remove(e)
	}
}

// drop closes a file and keeps it no longer.
func (o *openFiles) drop(key string, f *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.byKey[key]; e != nil && e.Value.(openFile).file == f {
		o.remove(e)
	}
	f.Close()
}

// remove must be called with mu held.
func (o *openFiles) remove(e *list.Element) {
	kept := o.order.Remove(e).(openFile)
	delete(o.byKey, kept.key)
	kept.file.Close()
}

func (o *openFiles) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.order.Len() > 0 {
		o.remove(o.order.Back())
	}
}
