-- What gobs keeps in a database that it hands out: a ledger of the roles that it made, and the
-- functions with which the machine's hob makes and unmakes them. Run it as a superuser in that
-- database; running it again, or a later version, changes nothing but the functions.
--
-- After that the hob needs to be neither superuser nor CREATEROLE: it calls these functions, as a
-- member of the role gobs_hob, and they act on roles of the ledger only.
--
-- What a binding may do comes from groups, so that a table has a few entries in its list of
-- rights, however many bindings there are:
--   gobs_read_N   reads every table, view and sequence of database N (or of one schema: _N_S)
--   gobs_write_N  the same, and changes rows
--   gobs_owner_D  may do everything in the database D, and owns what such bindings create: so it
--                 stays when they go, and each of them can change what another one made
-- Every role of a binding is in gobs_binding, too: it has no rights, and names them all at once in
-- pg_hba.conf.
-- An event trigger keeps this true for whatever is created later, by whomever.

-- Whoever owns the database may have set another one, with functions of theirs in it.
set search_path = pg_catalog, pg_temp;

begin;

do $do$
declare
  kept constant text := 'Kept by gobs: ';
  own record;
begin
  if current_setting('is_superuser') <> 'on' then
    raise exception using errcode = 'insufficient_privilege',
      message = 'gobs is installed in a database by a superuser';
  end if;
  if exists (select from pg_namespace n where n.nspname = 'gobs'
             and coalesce(obj_description(n.oid, 'pg_namespace'), '') not like kept || '%') then
    raise exception using errcode = 'duplicate_schema',
      message = 'a schema gobs exists in this database, and gobs did not make it';
  end if;
  for own in
    select * from (values
      ('gobs_hob', 'who may hand out databases'),
      ('gobs_binding', 'the roles of bindings, for pg_hba.conf')) o(name, note)
  loop
    if exists (select from pg_authid a where a.rolname = own.name
               and coalesce(shobj_description(a.oid, 'pg_authid'), '') not like kept || '%') then
      raise exception using errcode = 'duplicate_object',
        message = format('a role %s exists, and gobs did not make it', own.name);
    end if;
    if to_regrole(own.name) is null then
      begin
        execute format('create role %I nologin', own.name);
        execute format('comment on role %I is %L', own.name, kept || own.note);
      exception when unique_violation or duplicate_object then
        null; -- in another database at this moment
      end;
    end if;
  end loop;
  if to_regnamespace('gobs') is null then
    create schema gobs;
    execute format('comment on schema gobs is %L', kept || 'the roles of its bindings');
  end if;
end
$do$;

grant usage on schema gobs to gobs_hob;

create table if not exists gobs.role (
  id     oid  primary key,
  name   text not null unique,
  kind   text not null check (kind in ('binding', 'read', 'write', 'owner')),
  schema oid  not null default 0, -- the one that a group is for; 0: all of them
  note   text not null            -- which binding it is
);
-- The database that a row was written in: see gobs.present.
alter table gobs.role add column if not exists db oid;
update gobs.role set db = (select oid from pg_database where datname = current_database())
  where db is null;

-- Whoever dumps the database reads its tables. Who the roles are tells the server everybody anyway.
grant usage on schema gobs to public;
grant select on gobs.role to public;

create or replace function gobs.version() returns integer
language sql immutable as 'select 5';

-- The roles of the ledger that are there and this database's: one that was restored from a dump, or
-- made from a template, has rows of another one.
create or replace view gobs.present as
  select r.* from gobs.role r
  join pg_catalog.pg_authid a on a.oid = r.id and a.rolname = r.name
  join pg_catalog.pg_database d on d.oid = r.db and d.datname = current_database();

-- The schemas that hold people's things.
create or replace view gobs.schemas as
  select oid, nspname from pg_catalog.pg_namespace
  where nspname !~ '^pg_' and nspname not in ('information_schema', 'gobs');

-- Gives a group its rights on what a schema holds now.
create or replace function gobs.share(group_name text, access text, nspid oid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  nsp text := (select nspname from pg_namespace where oid = nspid);
  rights text[] := case access
    when 'read' then array['usage', 'select', 'select']
    when 'write' then array['usage', 'select, insert, update, delete', 'select, usage, update']
    else array['all', 'all', 'all'] end;
begin
  execute format('grant %s on schema %I to %I', rights[1], nsp, group_name);
  execute format('grant %s on all tables in schema %I to %I', rights[2], nsp, group_name);
  execute format('grant %s on all sequences in schema %I to %I', rights[3], nsp, group_name);
  if access = 'owner' then
    execute format('grant all on all routines in schema %I to %I', nsp, group_name);
  end if;
end
$$;

-- Returns the group with this access, which it makes if there is none.
create or replace function gobs.group_role(access text, in_schema oid) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  db constant text := current_database();
  note constant text := format('Kept by gobs: %s, database %s%s', access, db,
    (select ', schema ' || nspname from pg_namespace where oid = in_schema));
  plain constant text := left(regexp_replace(lower(db), '[^a-z0-9_]+', '_', 'g'), 40);
  dbid constant oid := (select oid from pg_database where datname = db);
  known text := (select p.name from gobs.present p
                 where p.kind = access and p.schema = in_schema);
  wanted text;
begin
  if known is not null then
    return known;
  end if;
  wanted := case when access <> 'owner' then concat_ws('_', 'gobs', access, dbid,
                                                       nullif(in_schema, 0))
                 when plain = db then 'gobs_owner_' || plain
                 else 'gobs_owner_' || plain || '_' || dbid end;
  if to_regrole(quote_ident(wanted)) is null then
    execute format('create role %I', wanted);
    execute format('comment on role %I is %L', wanted, note);
  elsif shobj_description(to_regrole(quote_ident(wanted)), 'pg_authid') is distinct from note then
    raise exception using errcode = 'duplicate_object',
      message = format('the role %I exists, and gobs did not make it', wanted),
      hint = 'rename that role';
  end if;
  execute format('alter role %I nologin nosuperuser nocreatedb nocreaterole noreplication '
                 'nobypassrls password null', wanted);
  delete from gobs.role r where r.kind = access and r.schema = in_schema
    or r.name = wanted or r.id = to_regrole(quote_ident(wanted));
  insert into gobs.role values
    (to_regrole(quote_ident(wanted)), wanted, access, in_schema, note, dbid);
  execute format('grant %s on database %I to %I',
    case access when 'read' then 'connect' when 'write' then 'connect, temporary' else 'all' end,
    db, wanted);
  perform gobs.share(wanted, access, s.oid) from gobs.schemas s where in_schema in (0, s.oid);
  return wanted;
end
$$;

-- Follows what is created, moved or renamed: rights for the groups, and ownership.
create or replace function gobs.follow() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  object record;
  member record;
  rights text;
begin
  -- Who is not in the group could not use it any more, temporary tables among them.
  if exists (select from gobs.present p where p.name = session_user and p.kind = 'binding')
    and exists (select from gobs.present p where p.kind = 'owner'
                and pg_has_role(session_user, p.id, 'member')) then
    execute format('reassign owned by %I to %I', session_user, gobs.group_role('owner', 0));
  end if;
  for object in
    select c.oid::regclass as name, c.relnamespace as nsp, c.relkind = 'S' as counts
    from pg_event_trigger_ddl_commands() e
    join pg_class c on e.classid = 'pg_class'::regclass and c.oid = e.objid
    join gobs.schemas s on s.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  loop
    for member in select * from gobs.present where kind <> 'binding' loop
      rights := case
        when member.kind = 'owner' then 'all'
        when member.kind = 'read' then 'select'
        when object.counts then 'select, usage, update'
        else 'select, insert, update, delete' end;
      if member.schema in (0, object.nsp) then
        execute format('grant %s on %s to %I', rights, object.name, member.name);
      elsif tg_tag like 'ALTER %' then
        execute format('revoke all on %s from %I', object.name, member.name);
      end if;
    end loop;
  end loop;
  perform gobs.share(p.name, p.kind, s.oid)
  from pg_event_trigger_ddl_commands() e
  join gobs.schemas s on e.classid = 'pg_namespace'::regclass and s.oid = e.objid
  join gobs.present p on p.kind <> 'binding' and p.schema in (0, s.oid);
exception when others then
  -- Whoever creates something must not fail because of us.
  raise warning 'gobs could not give its bindings their rights: %', sqlerrm;
end
$$;

do $do$
begin
  if not exists (select from pg_event_trigger where evtname = 'gobs_follow') then
    create event trigger gobs_follow on ddl_command_end when tag in (
      'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE VIEW', 'CREATE MATERIALIZED VIEW',
      'CREATE FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA', 'CREATE SEQUENCE', 'CREATE SCHEMA',
      'CREATE FUNCTION', 'CREATE PROCEDURE', 'CREATE AGGREGATE', 'CREATE TYPE', 'CREATE DOMAIN',
      'CREATE EXTENSION', 'CREATE OPERATOR', 'CREATE COLLATION', 'CREATE STATISTICS',
      'CREATE TEXT SEARCH CONFIGURATION', 'CREATE TEXT SEARCH DICTIONARY', 'ALTER TABLE',
      'ALTER VIEW', 'ALTER MATERIALIZED VIEW', 'ALTER FOREIGN TABLE', 'ALTER SEQUENCE')
    execute function gobs.follow();
  end if;
end
$do$;

-- Gives a database that the hob has just made to the group of owners.
create or replace function gobs.own_database() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('alter database %I owner to %I', current_database(), gobs.group_role('owner', 0));
end
$$;

-- Takes from PUBLIC what would let a reader write, and leaves it to the roles that exist: to make
-- temporary tables, large objects, and anything at all in schemas from before PostgreSQL 15.
create or replace function gobs.narrow_public() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  given record;
  other record;
begin
  for given in
    select 'temporary' as rights, format('database %I', datname) as object
    from pg_database d, aclexplode(coalesce(datacl, acldefault('d', datdba))) a
    where datname = current_database() and a.grantee = 0 and a.privilege_type = 'TEMPORARY'
    union all
    select 'create', format('schema %I', nspname) from pg_namespace, aclexplode(nspacl) a
    where a.grantee = 0 and a.privilege_type = 'CREATE'
    union all
    select 'execute', 'function ' || p.oid::regprocedure
    from pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
    where p.pronamespace = 'pg_catalog'::regnamespace
      and p.proname in ('lo_creat', 'lo_create', 'lo_from_bytea')
      and a.grantee = 0 and a.privilege_type = 'EXECUTE'
  loop
    for other in
      select rolname from pg_authid a where rolname !~ '^pg_' and not rolsuper
      and (exists (select from gobs.present p where p.id = a.oid and p.kind in ('write', 'owner'))
        -- What other databases' bindings have is in theirs, and would keep their roles from going.
        or coalesce(shobj_description(a.oid, 'pg_authid'), '') not like 'Kept by gobs: %')
    loop
      execute format('grant %s on %s to %I', given.rights, given.object, other.rolname);
    end loop;
    execute format('revoke %s on %s from public', given.rights, given.object);
  end loop;
end
$$;

-- Fails where somebody has given PUBLIC more than the binding may have.
create or replace function gobs.check_narrow(role_name text, access text, nsps oid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  wide text;
begin
  select string_agg(w.name, ', ') into wide from (
    select c.oid::regclass::text as name
    from pg_class c join gobs.schemas s on s.oid = c.relnamespace
    where has_schema_privilege(role_name, s.oid, 'usage') and case
      when c.relkind = 'S' then
        access = 'read' and has_sequence_privilege(role_name, c.oid, 'usage, update')
        or not (s.oid = any (nsps)) and has_sequence_privilege(role_name, c.oid, 'usage, select')
      when c.relkind in ('r', 'p', 'v', 'm', 'f') then
        access = 'read' and (has_table_privilege(role_name, c.oid, 'delete, truncate')
          or has_any_column_privilege(role_name, c.oid, 'insert, update'))
        or not (s.oid = any (nsps))
          and (has_any_column_privilege(role_name, c.oid, 'select, insert, update')
            or has_table_privilege(role_name, c.oid, 'delete, truncate'))
      else false end
    order by 1 limit 5) w;
  if wide is not null then
    raise exception using errcode = 'invalid_grant_operation',
      message = format('PUBLIC has rights on %s that the binding must not have', wide),
      hint = 'revoke them from PUBLIC, and grant them to the roles that need them';
  end if;
end
$$;

-- Writes a binding's role into the ledger.
create or replace function gobs.enter(role_name text, note text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  delete from gobs.role r where r.name = role_name or r.id = to_regrole(role_name);
  insert into gobs.role select to_regrole(role_name), role_name, 'binding', 0, note, oid
    from pg_database where datname = current_database();
end
$$;

-- The same for one that the ledger does not know, since the database was dropped and made again. The
-- role's comment says whose it is: that no role can change of itself.
create or replace function gobs.enter_lost(role_name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  suffix constant text := format(', for the database %I', current_database());
  comment constant text := (select shobj_description(oid, 'pg_authid') from pg_authid
                            where rolname = role_name);
begin
  if comment like 'Kept by gobs: %' and right(comment, length(suffix)) = suffix
    and not exists (select from gobs.present p where p.name = role_name) then
    perform gobs.enter(role_name, substr(comment, 15, length(comment) - 14 - length(suffix)));
  end if;
end
$$;

-- Returns whether a binding's role is in the ledger, and in a group.
create or replace function gobs.knows(role_name text) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exists (select from gobs.present p
    join pg_auth_members m on m.member = p.id join gobs.present g on g.id = m.roleid
    where p.name = role_name and p.kind = 'binding' and g.kind <> 'binding')
$$;

-- Makes the role of a binding, or makes it as it should be.
create or replace function gobs.mint(role_name text, verifier text, connections integer,
  access text, schemas json, note text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  nsps oid[];
  absent text;
begin
  -- Not an advisory lock: any role could take that, and hold up every grant and revocation.
  lock table gobs.role in share row exclusive mode;
  if role_name !~ '^gobs_[a-z0-9_]{1,58}$' or access not in ('read', 'write', 'owner')
     or verifier !~ '^SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' then
    raise exception using errcode = 'invalid_parameter_value',
      message = 'gobs was asked for a role that it does not make';
  end if;
  select coalesce(array_agg(s.oid) filter (where s.oid is not null), '{}'),
         string_agg(format('%I', w.name), ', ') filter (where s.oid is null)
    into nsps, absent
    from json_array_elements_text(schemas) w(name) left join gobs.schemas s on s.nspname = w.name;
  if absent is not null then
    raise exception using errcode = 'invalid_schema_name',
      message = format('the database %I has no schema %s', current_database(), absent);
  end if;
  perform gobs.enter_lost(role_name);
  if to_regrole(role_name) is null then
    execute format('create role %I', role_name);
    execute format('comment on role %I is %L', role_name,
                   format('Kept by gobs: %s, for the database %I', note, current_database()));
    perform gobs.enter(role_name, note);
  elsif not exists (select from gobs.present p where p.name = role_name and p.kind = 'binding') then
    raise exception using errcode = 'duplicate_object',
      message = format('the role %I exists, and gobs did not make it', role_name),
      hint = 'rename that role';
  end if;
  execute format('alter role %I login nosuperuser nocreatedb nocreaterole noreplication '
    'nobypassrls inherit connection limit %s password %L', role_name, connections, verifier);
  -- From version 16 on nobody can act as that group, and make what would outlive the role.
  execute format('grant gobs_binding to %I', role_name)
    || case when current_setting('server_version_num')::integer >= 160000
       then ' with set false' else '' end;
  if nsps = '{}' then
    execute format('grant %I to %I', gobs.group_role(access, 0), role_name);
  else
    for i in 1 .. cardinality(nsps) loop
      execute format('grant %I to %I', gobs.group_role(access, nsps[i]), role_name);
    end loop;
  end if;
  if access = 'read' then
    perform gobs.narrow_public();
  end if;
  if access = 'read' or nsps <> '{}' then
    perform gobs.check_narrow(role_name, access, case when nsps = '{}'
      then array(select oid from gobs.schemas) else nsps end);
  end if;
end
$$;

-- Ends a role's logins; returns its number, or null where there is no such role any more.
create or replace function gobs.close(role_name text) returns oid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  lost record;
begin
  lock table gobs.role in share row exclusive mode;
  perform gobs.enter_lost(role_name);
  if exists (select from gobs.present p where p.name = role_name and p.kind = 'binding') then
    execute format('alter role %I nologin password null', role_name);
    -- The database's groups, too, so that they go when nobody is in them. They are no schema's any
    -- more: nothing is shared with them.
    for lost in
      select g.oid as id, g.rolname as name, substr(c.description, 15) as note
      -- Not by shobj_description, a query for each role: there are thousands.
      from pg_shdescription c join pg_authid g on g.oid = c.objoid
      where c.classoid = 'pg_authid'::regclass
        and c.description like any (array['Kept by gobs: read, database %',
          'Kept by gobs: write, database %', 'Kept by gobs: owner, database %'])
        and starts_with(split_part(c.description, ', database ', 2) || ', ',
                        current_database() || ', ')
        and not exists (select from gobs.present p where p.id = g.oid)
    loop
      delete from gobs.role r where r.id = lost.id or r.name = lost.name;
      insert into gobs.role
        select lost.id, lost.name, split_part(lost.note, ',', 1), 1, lost.note, d.oid
        from pg_database d where d.datname = current_database();
    end loop;
  end if;
  return (select r.id from gobs.role r where r.name = role_name and r.kind = 'binding');
end
$$;

-- Ends the sessions that a role began, whatever they call themselves now; returns how many there
-- were. By the number: once the role is dropped its name is gone, and the session is not.
create or replace function gobs.cut(role_id oid) returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select count(pg_terminate_backend(s.pid)) from pg_stat_activity s
  where s.usesysid = role_id
    and exists (select from gobs.role r where r.id = role_id and r.kind = 'binding')
$$;

-- Hands over what a role owns, and takes it away; returns the other databases where it has
-- something, as a list in JSON, in which case it stays.
create or replace function gobs.unmake(role_name text) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  elsewhere text;
  number oid := (select p.id from gobs.present p where p.name = role_name and p.kind = 'binding');
begin
  lock table gobs.role in share row exclusive mode;
  if number is null then
    return null;
  end if;
  if exists (select from pg_shdepend where refclassid = 'pg_authid'::regclass
             and refobjid = number and deptype = 'o') then
    execute format('reassign owned by %I to %I', role_name, gobs.group_role('owner', 0));
  end if;
  execute format('drop owned by %I', role_name);
  select json_agg(distinct d.datname) into elsewhere
    from pg_shdepend s join pg_database d on d.oid = s.dbid
    where s.refclassid = 'pg_authid'::regclass and s.refobjid = number;
  if elsewhere is null then
    execute format('drop role %I', role_name);
  end if;
  return elsewhere;
end
$$;

-- Takes a role out of the ledger, and the groups that nobody is in.
create or replace function gobs.forget(role_id oid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  empty record;
begin
  lock table gobs.role in share row exclusive mode;
  delete from gobs.role r where r.id = role_id and r.kind = 'binding'
    and not exists (select from gobs.present p where p.id = role_id);
  for empty in
    select p.* from gobs.present p where p.kind <> 'binding'
      and not exists (select from pg_auth_members m where m.roleid = p.id)
      and not exists (select from pg_shdepend s where s.refclassid = 'pg_authid'::regclass
                      and s.refobjid = p.id and s.deptype = 'o')
  loop
    begin
      execute format('drop owned by %I', empty.name);
      execute format('drop role %I', empty.name);
      delete from gobs.role r where r.id = empty.id;
    exception when dependent_objects_still_exist then
      -- Somebody gave it rights in another database: it is theirs to take away.
      null;
    end;
  end loop;
end
$$;

revoke all on all routines in schema gobs from public;
grant execute on function gobs.version(), gobs.knows(text), gobs.close(text), gobs.cut(oid),
  gobs.unmake(text), gobs.forget(oid), gobs.mint(text, text, integer, text, json, text) to gobs_hob;

commit;
