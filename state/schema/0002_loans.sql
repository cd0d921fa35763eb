-- Services that people have opened: who, which, for how long. Rows stay when a loan is over.

CREATE TABLE loans (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    service    TEXT    NOT NULL,
    holder     TEXT    NOT NULL,             -- for people
    generation INTEGER NOT NULL,             -- of the grant to this holder
    key        TEXT    NOT NULL,             -- the designator of the person's key
    since      INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    ended      INTEGER,                      -- absent: at its time, if it ended
    UNIQUE (holder, generation)
) STRICT;
CREATE INDEX loans_by_service ON loans (service, id);
