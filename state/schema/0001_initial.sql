-- The first format of the state file. A later format is a file of its own with the next number.
--
-- Times are milliseconds since 1970. Cells called "sealed" hold ciphertext only; within the cells
-- `wanted`, `observed` and `value`, every sensitive part is replaced by {"sealed": ciphertext}.

CREATE TABLE project (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    lineage    TEXT    NOT NULL,             -- random; names the project for its life
    serial     INTEGER NOT NULL DEFAULT 0,   -- +1 with each commit of rows or outputs
    generation INTEGER NOT NULL DEFAULT 0,   -- +1 with each run
    cell_key   BLOB    NOT NULL              -- what seals cells, sealed under the data key
) STRICT;

CREATE TABLE rows (
    address  TEXT    PRIMARY KEY,
    version  INTEGER NOT NULL,               -- the serial of the commit that wrote it
    kind     TEXT    NOT NULL,               -- JSON: the kind, and what only this kind has
    wanted   TEXT    NOT NULL,
    observed TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE edges (
    address  TEXT    NOT NULL REFERENCES rows (address) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    needs    TEXT    NOT NULL,               -- may be gone already
    PRIMARY KEY (address, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE outputs (
    name    TEXT    PRIMARY KEY,
    version INTEGER NOT NULL,
    value   TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    command    TEXT    NOT NULL,
    started_at INTEGER NOT NULL
) STRICT;

CREATE TABLE journal (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    run        INTEGER NOT NULL REFERENCES runs (number),
    address    TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    token      TEXT,
    claim      BLOB,                         -- the swissnum's hash
    detail     BLOB,                         -- sealed; gone when the step has ended
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    message    BLOB                          -- sealed; why it failed, absent where it did not
) STRICT;
CREATE INDEX journal_in_doubt ON journal (id) WHERE ended_at IS NULL;
CREATE INDEX journal_by_run ON journal (run);

CREATE TABLE boss (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    seed BLOB,                               -- sealed
    port INTEGER
) STRICT;

CREATE TABLE claims (
    swissnum_hash BLOB    PRIMARY KEY CHECK (length(swissnum_hash) = 32),
    machine       TEXT    NOT NULL,
    incarnation   INTEGER NOT NULL,
    minted_at     INTEGER NOT NULL,
    accepted_at   INTEGER,
    expires_at    INTEGER NOT NULL,
    closes_at     INTEGER NOT NULL,          -- no extension reaches beyond
    bound_key     TEXT,
    first_address TEXT,
    first_time    INTEGER,
    claimed       INTEGER NOT NULL DEFAULT 0,
    contested     INTEGER NOT NULL DEFAULT 0,
    revoked_at    INTEGER,
    CHECK ((bound_key IS NULL) = (first_time IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_by_machine ON claims (machine, incarnation);

CREATE TABLE alerts (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    swissnum_hash   BLOB    NOT NULL REFERENCES claims (swissnum_hash) ON DELETE CASCADE,
    other_key       TEXT    NOT NULL,
    other_address   TEXT,
    first_time      INTEGER NOT NULL,
    last_time       INTEGER NOT NULL,
    count           INTEGER NOT NULL DEFAULT 1,
    contested       INTEGER NOT NULL,
    acknowledged_at INTEGER,
    UNIQUE (swissnum_hash, other_key)
) STRICT;

CREATE TABLE hobs (
    machine        TEXT    PRIMARY KEY,
    incarnation    INTEGER NOT NULL,
    designator     TEXT    NOT NULL,
    locator        TEXT    NOT NULL,
    presence       BLOB,                     -- sealed
    last_seen      INTEGER NOT NULL,
    join_confirmed INTEGER NOT NULL DEFAULT 0,
    join_offered   INTEGER NOT NULL DEFAULT 1,
    locked_at      INTEGER
) STRICT, WITHOUT ROWID;
