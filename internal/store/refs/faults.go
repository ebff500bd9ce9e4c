// SPDX-License-Identifier: Apache-2.0

package refs

// faults are rules left out, one each, to show that the tests notice; a Log has
// none. The numbers are those of docs/garbage-collection.md.
type faults struct {
	unordered    bool // 2: the id is the clock's, whatever is pinned
	createBlind  bool // 2: the object is created over one of that name
	tokenIgnored bool // 2: any object of that name is taken for the own one
	basesFirst   bool // 3: bases are read before the object is created
	useDeleting  bool // 3: bases being deleted are used
	renewAny     bool // 4: a refused renewal takes the version it finds, in any state
	commitBlind  bool // 5: the commit overwrites whatever is there
	refusedIsOK  bool // 5: a refused commit counts as done
	failUnfenced bool // 5: "failed" is said of a commit that may still land
	revokeBlind  bool // 7: revocation overwrites whatever is there
	expiredDead  bool // 7: an expired claim counts as revoked without being so
	undeclared   bool // 8: a revoked object does not keep what it declared
	prefixUnseen bool // 8: what is below packs/<id>/ of a dead object is not looked for
	ownOffered   bool // 8: a dead object offers its own packs only
	auditLate    bool // 8: an audit lists the packs after step 2
	oneList      bool // 8: what step 2 finds dead is freed at once
	skipMissing  bool // 9: an object that is gone is passed over
	deletingDead bool // 10: an object deleted since step 1 needs nothing
	ownLive      bool // 10: a committed object needs its own packs only
	writingDead  bool // 10: packs of writers are not alive
	pinsIgnored  bool // 10: pins keep nothing
	pinsOwn      bool // 10: pins keep the own packs of what is pinned only
	pinnedGoes   bool // 11: a pinned object is removed
	holderGoes   bool // 11: an object is removed though a dead one alone keeps its packs
	objectsFirst bool // 11: objects are removed before their packs
	readFirst    bool // 12: what is read is looked at before the lease is there
	unlocked     bool // 13: a sweep of a directory takes no lock
}
