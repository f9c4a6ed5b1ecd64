-- The state of a daemon of diskcast 0.1.0 (commit c9ea1cd, schema 0003), written by its own code and dumped by sqlite3.
-- Tokens: tests/store/test_upgrade.py has their secrets, of which this database has the SHA-256.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE audit (
	entry_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at VARCHAR(27) NOT NULL, 
	actor TEXT NOT NULL, 
	action TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	detail JSON NOT NULL, 
	request_id TEXT NOT NULL
, entry_key TEXT);
INSERT INTO "audit" VALUES(1,'2026-03-01T08:00:00.124456Z','the operator','room.create','room lab','{"room_id": "lab", "name": "Lab 3.14", "description": "ground floor", "site": "campus", "interface": "eth1"}','',NULL);
INSERT INTO "audit" VALUES(2,'2026-03-01T08:00:00.125456Z','the operator','room.create','room attic','{"room_id": "attic", "name": "Attic", "description": "", "site": "", "interface": ""}','',NULL);
INSERT INTO "audit" VALUES(3,'2026-03-01T08:00:00.127456Z','the operator','token.create','token t1bcccea62e61','{"name": "console", "role": "operate", "expires_at": null}','',NULL);
INSERT INTO "audit" VALUES(4,'2026-03-01T08:00:00.129456Z','the operator','token.create','token t86d2c96e819b','{"name": "wall display", "role": "view", "expires_at": null}','',NULL);
INSERT INTO "audit" VALUES(5,'2026-03-01T08:00:00.131456Z','the operator','token.create','token t3129903a5597','{"name": "sticks", "role": "enrol", "expires_at": null}','',NULL);
INSERT INTO "audit" VALUES(6,'2026-03-01T08:00:00.133456Z','the operator','token.create','token t1e029a8a5b02','{"name": "old sticks", "role": "enrol", "expires_at": "2026-03-02T08:00:00.123456+00:00"}','',NULL);
INSERT INTO "audit" VALUES(7,'2026-03-01T08:00:00.134456Z','the operator','machine.create','machine m4a146cf098e1','{"name": "pc-01", "room_id": "lab", "serial": "SN1", "asset_tag": "A1", "position": "row 1, seat 1", "note": "projector", "macs": ["52:54:00:00:00:01"]}','',NULL);
INSERT INTO "audit" VALUES(8,'2026-03-01T08:00:00.135456Z','the operator','machine.create','machine mcf999661bdaf','{"name": "pc-02", "room_id": "lab", "serial": "", "asset_tag": "", "position": "", "note": "", "macs": ["52:54:00:00:00:02", "52:54:00:00:00:12"]}','',NULL);
INSERT INTO "audit" VALUES(9,'2026-03-01T08:00:00.137456Z','the operator','room.import','room attic','{"added": 2, "changed": 0, "unchanged": 0}','',NULL);
INSERT INTO "audit" VALUES(10,'2026-03-01T08:00:00.140456Z','the operator','image.change','image abababababababababababababababababababababababababababababababab','{"name": "Windows 11"}','',NULL);
INSERT INTO "audit" VALUES(11,'2026-03-01T08:00:00.141456Z','the operator','image.change','image cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','{"name": "debian"}','',NULL);
INSERT INTO "audit" VALUES(12,'2026-03-01T08:00:00.143456Z','the operator','image.add','image debian','{"url": "https://example.org/debian.dci"}','',NULL);
INSERT INTO "audit" VALUES(13,'2026-03-01T08:00:00.145456Z','the operator','cast.create','cast 0000c0de','{"plan": {"image_id": "abababababababababababababababababababababababababababababababab", "room_id": "lab", "machine_ids": [], "name": "Monday", "start": "joined", "start_at": null, "wait_for": null, "max_wait_s": 300.0, "rate_bytes_per_s": null, "rate_max_bytes_per_s": null, "share": false, "slow": "demote", "slow_below": 0.3, "slow_for_s": 10.0}, "image_name": "Windows 11", "required_count": 2}','',NULL);
INSERT INTO "audit" VALUES(14,'2026-03-01T08:00:00.147456Z','the operator','cast.create','cast 0000beef','{"plan": {"image_id": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "room_id": "attic", "machine_ids": [], "name": "tonight", "start": "joined", "start_at": "2050-10-21T08:00:00.123456+00:00", "wait_for": 2, "max_wait_s": 300.0, "rate_bytes_per_s": null, "rate_max_bytes_per_s": null, "share": false, "slow": "demote", "slow_below": 0.3, "slow_for_s": 10.0}, "image_name": "debian", "required_count": 2}','',NULL);
INSERT INTO "audit" VALUES(15,'2026-03-01T08:00:00.148456Z','the operator','schedule.create','schedule s1','{"schedule_id": "s1", "name": "nightly", "cron": "0 3 * * *", "time_zone": "Europe/Berlin", "plan": {"image_id": "abababababababababababababababababababababababababababababababab", "room_id": "lab", "machine_ids": [], "name": "", "start": "joined", "start_at": null, "wait_for": null, "max_wait_s": 300.0, "rate_bytes_per_s": null, "rate_max_bytes_per_s": null, "share": false, "slow": "demote", "slow_below": 0.3, "slow_for_s": 10.0}, "enabled": true, "created_at": "2026-03-01T08:00:00.123456+00:00", "next_at": "2026-03-01T08:00:00.123456+00:00", "last_cast_id": null, "problem": ""}','',NULL);
CREATE TABLE cast_events (
	event_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	cast_id TEXT NOT NULL, 
	at VARCHAR(27) NOT NULL, 
	kind TEXT NOT NULL, 
	machine TEXT NOT NULL, 
	text TEXT NOT NULL, 
	CONSTRAINT fk_cast_events_cast_id FOREIGN KEY(cast_id) REFERENCES casts (cast_id) ON DELETE CASCADE
);
INSERT INTO "cast_events" VALUES(1,'0000c0de','2026-03-01T08:00:00.123456Z','started','','started');
CREATE TABLE cast_machines (
	line_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	cast_id TEXT NOT NULL, 
	machine_key TEXT NOT NULL, 
	machine_id TEXT, 
	image_id TEXT NOT NULL, 
	room_id TEXT, 
	serial TEXT NOT NULL, 
	asset_tag TEXT NOT NULL, 
	at VARCHAR(27) NOT NULL, 
	name TEXT NOT NULL, 
	address TEXT NOT NULL, 
	state TEXT NOT NULL, 
	error TEXT NOT NULL, 
	exit_code INTEGER, 
	limiter TEXT NOT NULL, 
	progress DOUBLE NOT NULL, 
	bytes_verified INTEGER NOT NULL, 
	bytes_kept INTEGER NOT NULL, 
	blocks_rewritten INTEGER NOT NULL, 
	seconds DOUBLE NOT NULL, 
	rate_bytes_per_s DOUBLE NOT NULL, 
	loss DOUBLE NOT NULL, 
	nacks_count INTEGER NOT NULL, 
	socket_drops_count INTEGER NOT NULL, 
	demoted BOOLEAN NOT NULL, 
	joined_at VARCHAR(27), 
	ended_at VARCHAR(27), 
	CONSTRAINT fk_cast_machines_cast_id FOREIGN KEY(cast_id) REFERENCES casts (cast_id) ON DELETE CASCADE
);
INSERT INTO "cast_machines" VALUES(1,'0000c0de','m4a146cf098e1','m4a146cf098e1','abababababababababababababababababababababababababababababababab','lab','SN1','A1','2026-03-01T08:00:00.123456Z','pc-01','10.0.0.9','complete','',0,'disk',1.0,1073741824,0,0,12.5,0.0,0.0,0,0,0,'2026-03-01T08:00:00.123456Z','2026-03-01T08:00:30.123456Z');
INSERT INTO "cast_machines" VALUES(2,'0000c0de','mcf999661bdaf','mcf999661bdaf','abababababababababababababababababababababababababababababababab','lab','','','2026-03-01T08:00:00.123456Z','pc-02','10.0.0.9','failed','disk /dev/sda: write error',30,'disk',0.4,4194304,0,0,12.5,0.0,0.0,0,0,0,'2026-03-01T08:00:00.123456Z','2026-03-01T08:00:30.123456Z');
CREATE TABLE cast_requests (
	request_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	cast_id TEXT NOT NULL, 
	command TEXT NOT NULL, actor TEXT DEFAULT 'the operator' NOT NULL, reason TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT fk_cast_requests_cast_id FOREIGN KEY(cast_id) REFERENCES casts (cast_id) ON DELETE CASCADE
);
CREATE TABLE cast_timelines (
	cast_id TEXT NOT NULL, 
	points BLOB NOT NULL, 
	CONSTRAINT pk_cast_timelines PRIMARY KEY (cast_id), 
	CONSTRAINT fk_cast_timelines_cast_id FOREIGN KEY(cast_id) REFERENCES casts (cast_id) ON DELETE CASCADE
);
INSERT INTO "cast_timelines" VALUES('0000c0de',X'789C6D8C410A83301045EF32EB2022B8C9554A09310E32D43861F22D48F1EEED265975F7DF7BF01F1F8A0895FC38CC8E2C82C372816B286C5D6FAA6B39F1A7EC5ADB2CD1045703D3CDB8B798206F0E49CF03E427474973D9195D8DBF2BC90236F2B44A7DD1FDFC028BC3333D');
CREATE TABLE casts (
	cast_id TEXT NOT NULL, 
	"plan" JSON NOT NULL, 
	image_id TEXT NOT NULL, 
	room_id TEXT, 
	start_at VARCHAR(27), 
	image_name TEXT NOT NULL, 
	raw_bytes INTEGER NOT NULL, 
	phase TEXT NOT NULL, 
	paused BOOLEAN NOT NULL, 
	owner TEXT NOT NULL, 
	group_address TEXT NOT NULL, 
	port INTEGER NOT NULL, 
	control_url TEXT NOT NULL, 
	required_count INTEGER NOT NULL, 
	run_count INTEGER NOT NULL, 
	created_at VARCHAR(27) NOT NULL, 
	created_by TEXT NOT NULL, 
	schedule_id TEXT, 
	gathering_at VARCHAR(27), 
	casting_at VARCHAR(27), 
	ended_at VARCHAR(27), 
	reason TEXT NOT NULL, 
	seconds DOUBLE NOT NULL, 
	bytes_sent INTEGER NOT NULL, 
	progress DOUBLE NOT NULL, 
	joined_count INTEGER NOT NULL, 
	complete_count INTEGER NOT NULL, 
	failed_count INTEGER NOT NULL, 
	lease_owner TEXT NOT NULL, 
	lease_beat INTEGER NOT NULL, 
	CONSTRAINT pk_casts PRIMARY KEY (cast_id)
);
INSERT INTO "casts" VALUES('0000c0de','{"image_id": "abababababababababababababababababababababababababababababababab", "room_id": "lab", "machine_ids": [], "name": "Monday", "start": "joined", "start_at": null, "wait_for": null, "max_wait_s": 300.0, "rate_bytes_per_s": null, "rate_max_bytes_per_s": null, "share": false, "slow": "demote", "slow_below": 0.3, "slow_for_s": 10.0}','abababababababababababababababababababababababababababababababab','lab',NULL,'Windows 11',1073741824,'failed',0,'daemon-a','239.255.1.1',9000,'',2,1,'2026-03-01T08:00:00.144456Z','token console',NULL,'2026-03-01T08:00:00.123456Z','2026-03-01T08:00:02.123456Z','2026-03-01T08:00:40.123456Z','1 of 2 machines failed',38.0,1073741824,0.4,2,1,1,'daemon-a',1);
INSERT INTO "casts" VALUES('0000beef','{"image_id": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "room_id": "attic", "machine_ids": [], "name": "tonight", "start": "joined", "start_at": "2050-10-21T08:00:00.123456+00:00", "wait_for": 2, "max_wait_s": 300.0, "rate_bytes_per_s": null, "rate_max_bytes_per_s": null, "share": false, "slow": "demote", "slow_below": 0.3, "slow_for_s": 10.0}','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','attic','2050-10-21T08:00:00.123456Z','debian',2147483648,'planned',0,'','',0,'',2,0,'2026-03-01T08:00:00.146456Z','schedule nightly',NULL,NULL,NULL,NULL,'',0.0,0,0.0,0,0,0,'',0);
CREATE TABLE idempotency (
	scope TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	fingerprint TEXT NOT NULL, 
	status INTEGER, 
	headers JSON NOT NULL, 
	body BLOB NOT NULL, 
	at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_idempotency PRIMARY KEY (scope, "key")
);
INSERT INTO "idempotency" VALUES('token console','key-1','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',NULL,'{}',X'','2026-03-01T08:00:00.150456Z');
CREATE TABLE images (
	image_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	location TEXT NOT NULL, 
	source TEXT NOT NULL, 
	state TEXT NOT NULL, 
	raw_bytes INTEGER NOT NULL, 
	stored_bytes INTEGER NOT NULL, 
	block_bytes INTEGER NOT NULL, 
	fetched_bytes INTEGER NOT NULL, 
	problem TEXT NOT NULL, 
	packed_at VARCHAR(27), 
	first_seen_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_images PRIMARY KEY (image_id)
);
INSERT INTO "images" VALUES('abababababababababababababababababababababababababababababababab','Windows 11','/srv/images/w11.dci','folder','available',10,5,262144,5,'',NULL,'2026-03-01T08:00:00.123456Z');
INSERT INTO "images" VALUES('cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','debian','https://example.org/debian.dci','remote','remote',10,5,262144,5,'',NULL,'2026-03-01T08:00:00.123456Z');
CREATE TABLE machine_macs (
	mac TEXT NOT NULL, 
	machine_id TEXT NOT NULL, 
	order_index INTEGER NOT NULL, 
	CONSTRAINT pk_machine_macs PRIMARY KEY (mac), 
	CONSTRAINT fk_machine_macs_machine_id FOREIGN KEY(machine_id) REFERENCES machines (machine_id) ON DELETE CASCADE
);
INSERT INTO "machine_macs" VALUES('52:54:00:00:00:01','m4a146cf098e1',0);
INSERT INTO "machine_macs" VALUES('52:54:00:00:00:02','mcf999661bdaf',0);
INSERT INTO "machine_macs" VALUES('52:54:00:00:00:12','mcf999661bdaf',1);
INSERT INTO "machine_macs" VALUES('52:54:00:00:00:0b','mdf0e733713f8',0);
INSERT INTO "machine_macs" VALUES('52:54:00:00:00:0c','mf5d40f6cd1b9',0);
INSERT INTO "machine_macs" VALUES('52:54:00:00:00:03','m87376f071287',0);
CREATE TABLE machines (
	machine_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	room_id TEXT, 
	serial TEXT NOT NULL, 
	serial_key TEXT NOT NULL, 
	asset_tag TEXT NOT NULL, 
	asset_key TEXT NOT NULL, 
	position TEXT NOT NULL, 
	note TEXT NOT NULL, 
	address TEXT NOT NULL, 
	agent_version TEXT NOT NULL, 
	inventory JSON NOT NULL, 
	created_at VARCHAR(27) NOT NULL, 
	last_seen_at VARCHAR(27), 
	CONSTRAINT pk_machines PRIMARY KEY (machine_id), 
	CONSTRAINT fk_machines_room_id FOREIGN KEY(room_id) REFERENCES rooms (room_id) ON DELETE SET NULL
);
INSERT INTO "machines" VALUES('m4a146cf098e1','pc-01','lab','SN1','sn1','A1','a1','row 1, seat 1','projector','10.0.0.11','0.1.0','{}','2026-03-01T08:00:00.123456Z','2026-03-01T08:00:00.139456Z');
INSERT INTO "machines" VALUES('mcf999661bdaf','pc-02','lab','','','','','','','','','{}','2026-03-01T08:00:00.123456Z',NULL);
INSERT INTO "machines" VALUES('mdf0e733713f8','pc-11','attic','SN11','sn11','A11','a11','desk','','','','{}','2026-03-01T08:00:00.136456Z',NULL);
INSERT INTO "machines" VALUES('mf5d40f6cd1b9','pc-12','attic','SN12','sn12','A12','a12','','','','','{}','2026-03-01T08:00:00.136456Z',NULL);
INSERT INTO "machines" VALUES('m87376f071287','live',NULL,'SN3','sn3','','','','','10.0.0.13','0.1.0','{"cpu": "Ryzen 5", "memory": "16 GiB"}','2026-03-01T08:00:00.138456Z','2026-03-01T08:00:00.138456Z');
CREATE TABLE remotes (
	url TEXT NOT NULL, 
	name TEXT NOT NULL, 
	created_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_remotes PRIMARY KEY (url)
);
INSERT INTO "remotes" VALUES('https://example.org/debian.dci','debian','2026-03-01T08:00:00.142456Z');
CREATE TABLE rooms (
	room_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	site TEXT NOT NULL, 
	interface TEXT NOT NULL, 
	created_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_rooms PRIMARY KEY (room_id)
);
INSERT INTO "rooms" VALUES('lab','Lab 3.14','ground floor','campus','eth1','2026-03-01T08:00:00.123456Z');
INSERT INTO "rooms" VALUES('attic','Attic','','','','2026-03-01T08:00:00.123456Z');
CREATE TABLE schedules (
	schedule_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	cron TEXT NOT NULL, 
	time_zone TEXT NOT NULL, 
	"plan" JSON NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	created_at VARCHAR(27) NOT NULL, 
	next_at VARCHAR(27), 
	last_cast_id TEXT, 
	problem TEXT NOT NULL, 
	CONSTRAINT pk_schedules PRIMARY KEY (schedule_id)
);
INSERT INTO "schedules" VALUES('s1','nightly','0 3 * * *','Europe/Berlin','{"image_id": "abababababababababababababababababababababababababababababababab", "room_id": "lab", "machine_ids": [], "name": "", "start": "joined", "start_at": null, "wait_for": null, "max_wait_s": 300.0, "rate_bytes_per_s": null, "rate_max_bytes_per_s": null, "share": false, "slow": "demote", "slow_below": 0.3, "slow_for_s": 10.0}',1,'2026-03-01T08:00:00.123456Z','2026-03-01T08:00:00.123456Z',NULL,'');
CREATE TABLE store_state (
	row_id INTEGER NOT NULL, 
	database_id TEXT NOT NULL, 
	sequence INTEGER NOT NULL, 
	segment INTEGER NOT NULL, 
	CONSTRAINT pk_store_state PRIMARY KEY (row_id)
);
INSERT INTO "store_state" VALUES(1,'f5b165224a58b791df6af1d8303e61cd',24,1);
CREATE TABLE tokens (
	token_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	role TEXT NOT NULL, 
	secret_hash TEXT NOT NULL, 
	created_at VARCHAR(27) NOT NULL, 
	created_by TEXT NOT NULL, 
	expires_at VARCHAR(27), 
	last_used_at VARCHAR(27), 
	CONSTRAINT pk_tokens PRIMARY KEY (token_id)
);
INSERT INTO "tokens" VALUES('t1bcccea62e61','console','operate','a4fdcdbd823162ed44b936ba59dc96cdf08a5a73b175c686191154f519c56cb4','2026-03-01T08:00:00.126456Z','local',NULL,NULL);
INSERT INTO "tokens" VALUES('t86d2c96e819b','wall display','view','a3616064e7d9782d1ee5b6fd6c6f11b011c9a3a17be3579eb186ce6b40d13d69','2026-03-01T08:00:00.128456Z','local',NULL,NULL);
INSERT INTO "tokens" VALUES('t3129903a5597','sticks','enrol','a58f942a4d5668e38b01474fda60b43cf99a37dfdb64b5391a682463146e4c8d','2026-03-01T08:00:00.130456Z','local',NULL,NULL);
INSERT INTO "tokens" VALUES('t1e029a8a5b02','old sticks','enrol','e0aac466dc6a28d838878a1404ee1e2059779a6b33c55b0d15155daab0b00d65','2026-03-01T08:00:00.132456Z','local','2026-03-02T08:00:00.123456Z',NULL);
CREATE INDEX ix_audit_actor_at_entry_id ON audit (actor, at, entry_id);
CREATE INDEX ix_audit_at_entry_id ON audit (at, entry_id);
CREATE INDEX ix_audit_subject_at_entry_id ON audit (subject, at, entry_id);
CREATE INDEX ix_casts_created_at_cast_id ON casts (created_at, cast_id);
CREATE INDEX ix_casts_ended_at ON casts (ended_at);
CREATE INDEX ix_casts_phase_created_at_cast_id ON casts (phase, created_at, cast_id);
CREATE INDEX ix_casts_room_id_created_at_cast_id ON casts (room_id, created_at, cast_id);
CREATE INDEX ix_idempotency_at ON idempotency (at);
CREATE INDEX ix_images_name_image_id ON images (name, image_id);
CREATE INDEX ix_rooms_name_room_id ON rooms (name, room_id);
CREATE INDEX ix_schedules_name_schedule_id ON schedules (name, schedule_id);
CREATE INDEX ix_schedules_next_at ON schedules (next_at);
CREATE UNIQUE INDEX ix_tokens_name ON tokens (name);
CREATE UNIQUE INDEX ix_tokens_secret_hash ON tokens (secret_hash);
CREATE UNIQUE INDEX ix_cast_events_cast_id_at_kind_machine ON cast_events (cast_id, at, kind, machine);
CREATE INDEX ix_cast_machines_at_line_id ON cast_machines (at, line_id);
CREATE INDEX ix_cast_machines_cast_id_at_line_id ON cast_machines (cast_id, at, line_id);
CREATE UNIQUE INDEX ix_cast_machines_cast_id_machine_key ON cast_machines (cast_id, machine_key);
CREATE INDEX ix_cast_machines_image_id_at_line_id ON cast_machines (image_id, at, line_id);
CREATE INDEX ix_cast_machines_machine_id_at_line_id ON cast_machines (machine_id, at, line_id);
CREATE INDEX ix_cast_machines_room_id_at_line_id ON cast_machines (room_id, at, line_id);
CREATE INDEX ix_cast_machines_state_at_line_id ON cast_machines (state, at, line_id);
CREATE UNIQUE INDEX ix_cast_requests_cast_id_command ON cast_requests (cast_id, command);
CREATE INDEX ix_machines_asset_key ON machines (asset_key);
CREATE INDEX ix_machines_name_machine_id ON machines (name, machine_id);
CREATE INDEX ix_machines_room_id_name_machine_id ON machines (room_id, name, machine_id);
CREATE INDEX ix_machines_serial_key ON machines (serial_key);
CREATE INDEX ix_machine_macs_machine_id_order_index ON machine_macs (machine_id, order_index);
CREATE UNIQUE INDEX ix_audit_entry_key ON audit (entry_key);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('audit',15);
INSERT INTO "sqlite_sequence" VALUES('cast_machines',2);
INSERT INTO "sqlite_sequence" VALUES('cast_events',1);
COMMIT;
